"""The folder of a training run: what was asked for, where it ran, and what each epoch gave."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from convlens_training.environment import environment
from convlens_training.errors import TrainingError
from convlens_training.files import replacing, writing

CONFIG, ENVIRONMENT, METRICS, RESULT = "config.yaml", "environment.yaml", "metrics.jsonl", "result.json"
EXPORT = "export"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder and the files in it.

    `result.json` is written last: a run that has it is finished. All methods that write raise TrainingError where the
    file system refuses.

    Attributes:
        path: Of the folder, runs/<network>-<data>-<time>.
    """

    path: Path

    @classmethod
    def create(cls, root: Path, network: str, data: str) -> RunFolder:
        """Makes the folder of a new run, with `checkpoints/` in it.

        Args:
            root: The folder of all runs; made if missing.
            network: Its name.
            data: What `--data` says; of a path the last part goes into the name.

        Raises:
            TrainingError: The file system refuses.
        """
        what = "-".join(re.sub(r"[^\w.]+", "_", part).strip("_.") for part in (network, Path(data).resolve().name))
        name = f"{what}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        with writing(root / name):
            root.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                path = root / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()
                except FileExistsError:
                    number += 1
                    continue
                break
            run = cls(path)
            run.checkpoints.mkdir()
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints."""
        return self.path / "checkpoints"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml.

        Args:
            config: What was asked for. `convlens runs` and the report read "network", "data", and "epochs", which may
                stand in a mapping "recipe"; anything else is shown as it is. Paths, tuples and mappings may occur.
        """
        self._write_yaml(CONFIG, config)

    def config(self) -> dict[str, Any]:
        """What `write_config` wrote. Raises TrainingError."""
        return self._read_yaml(CONFIG)

    def write_environment(self) -> None:
        """Writes environment.yaml: releases, commit, processor, GPUs; no names of hosts or users, and no paths."""
        self._write_yaml(ENVIRONMENT, environment())

    def environment(self) -> dict[str, Any]:
        """What `write_environment` wrote. Raises TrainingError."""
        return self._read_yaml(ENVIRONMENT)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Adds an epoch's line to metrics.jsonl; it is on disk afterwards.

        Args:
            metrics: "epoch", from 1; "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"
                (fractions); "learning_rate" at its end; "images_per_second"; "data_wait", the fraction of the time
                that steps waited for data; "seconds" that the epoch took. A number that is not finite becomes null.
        """
        line = json.dumps({key: _plain(value) for key, value in metrics.items()}) + "\n"
        file_path = self.path / METRICS
        with writing(file_path), file_path.open("a+b") as file:
            _cut_half_line(file_path)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, float]]:
        """All epochs' lines, in order; empty where there are none yet.

        A last line that a kill has cut short is left out. A null becomes nan.

        Raises:
            TrainingError: The file cannot be read, or another line of it is damaged.
        """
        path = self.path / METRICS
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
        whole, _, _ = content.rpartition(b"\n")
        epochs = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                values = json.loads(line)
                epochs.append({key: math.nan if value is None else value + 0 for key, value in values.items()})
            except (ValueError, TypeError, AttributeError):
                raise TrainingError(
                    f"line {number} of {path} is damaged: it must be a JSON object of numbers; remove the line"
                ) from None
        return epochs

    def forget_after(self, epoch: int) -> None:
        """Drops the lines of later epochs, which a resumed run does again.

        Raises:
            TrainingError: As `metrics`, or the file cannot be written.
        """
        path = self.path / METRICS
        if path.exists():
            kept = [line for line in self.metrics() if line.get("epoch", 0) <= epoch]
            text = "".join(json.dumps({key: _plain(value) for key, value in line.items()}) + "\n" for line in kept)
            with replacing(path) as file:
                file.write(text.encode())

    @property
    def export(self) -> Path:
        """The folder with what was exported."""
        return self.path / EXPORT

    def write_export(self, files: Mapping[str, bytes]) -> None:
        """Writes files into `export/`, which appears with all of them whole in it, or not at all.

        What an earlier end of the same run has left, whole or by a kill in part, is replaced.

        Args:
            files: By name, or by path in a folder.
        """
        unfinished = self.path / f".{EXPORT}.{secrets.token_hex(4)}.part"
        with writing(self.export):
            try:
                for left in self.path.glob(f".{EXPORT}.*.part"):
                    shutil.rmtree(left)
                unfinished.mkdir()
                for name, content in files.items():
                    (unfinished / name).parent.mkdir(exist_ok=True)
                    with (unfinished / name).open("wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                if self.export.exists():
                    shutil.rmtree(self.export)
                unfinished.rename(self.export)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json, after which the run counts as finished.

        Args:
            result: "accuracy" (fraction), "loss", "images" of the evaluation, and "export", as `write_report` is
                given it; JSON values.
        """
        with replacing(self.path / RESULT) as file:
            file.write((json.dumps(result, ensure_ascii=False, indent=1, default=_as_json) + "\n").encode())

    def result(self) -> dict[str, Any] | None:
        """What `write_result` wrote; None where the run is not finished. Raises TrainingError."""
        path = self.path / RESULT
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} cannot be read: {error}") from None
        return _mapping(path, content)

    def _write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        # Through JSON: YAML's own tags for tuples and paths are nothing that others can read.
        plain = json.loads(json.dumps(content, default=_as_json))
        with replacing(self.path / name) as file:
            file.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120).encode())

    def _read_yaml(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = yaml.safe_load(path.read_bytes())
        except FileNotFoundError:
            raise TrainingError(f"{path} is missing: {self.path} is no folder of a training run") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise TrainingError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        return _mapping(path, content)


def _mapping(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is damaged: it holds a {type(content).__name__}, but must hold a mapping")
    return content


def _plain(value: float) -> float | None:
    """An int, or a finite float of Python's; numpy's and torch's numbers become one."""
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's and torch's numbers and arrays
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}, which a run's files cannot hold")


def _cut_half_line(path: Path) -> None:
    """Removes what a kill has left of a line, so that the next one begins on its own."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
