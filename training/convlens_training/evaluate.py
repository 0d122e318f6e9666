"""Evaluates a published model: `convlens evaluate`, through a running server or straight through onnxruntime."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from convlens import Client, Error
from convlens.cli import _show
from convlens.cli._commands import connect
from convlens.cli._parser import asking
from convlens.manifest import PRECISIONS, ImageInput, file_name
from convlens_training import datasets
from convlens_training.errors import TrainingError
from convlens_training.evaluation import Evaluation
from convlens_training.figures import CLASS_TITLES, class_rows, headline
from convlens_training.recipes import ImageSize

# Images in one run of onnxruntime: beyond it nothing gets faster.
_BATCH = 64
# Of a stream: enough to fill the server's batches while answers are on their way.
_IN_FLIGHT = 128


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated.

    Attributes:
        name: The model's.
        version: Positive.
        labels: By class index.
        size: Of the image it takes.
        training: The manifest's account of its training.
        metrics: The manifest's metrics.
        precision: Of its weights and arithmetic.
        where: Who computes, for people.
    """

    name: str
    version: int
    labels: tuple[str, ...]
    size: ImageSize
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    precision: str
    where: str


def main(argv: Sequence[str]) -> int:
    """Runs `convlens evaluate` with the arguments after "evaluate".

    Returns:
        The exit status: 0, or 1 after an error, whose reason is on standard error.

    Raises:
        SystemExit: Status 2, the usage is wrong; status 0 for --help.
    """
    parser = _parser()
    server = parser.get_default("server")
    # To tell whether it was given.
    parser.set_defaults(server=None)
    options = parser.parse_args(argv)
    if options.models is not None and options.server is not None:
        parser.error("argument --models: not allowed with argument --server")
    if options.models is None and options.precision is not None:
        parser.error("argument --precision: needs --models; a server chooses the precision itself")
    options.server = options.server or server
    try:
        _check_output(options.output)
        if options.models is None:
            with connect(options) as client:
                subject = _served(client, options)
                held_out = _held_out(options, subject)
                start = time.perf_counter()
                logits = ask(client, subject, held_out.images)
        else:
            network = LocalNetwork(options)
            subject = network.subject
            held_out = _held_out(options, subject)
            start = time.perf_counter()
            logits = network.logits(held_out.images)
        seconds = time.perf_counter() - start
        evaluation = Evaluation(subject.labels, held_out.labels, logits)
        _tell(options, subject, evaluation, held_out.images, seconds)
    except (TrainingError, Error) as error:
        print(f"convlens evaluate: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def ask(client: Client, subject: Subject, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The logits of images, from a running server, by one stream with at most 128 images in flight.

    Args:
        client: Of the server.
        subject: The version of a model that is asked.
        images: uint8 N × height × width × channels; sent as pixels.

    Returns:
        float32 N × classes, in the order of the images.

    Raises:
        convlens.Error: The server failed, or cannot be reached.
    """
    outcomes = client.stream(
        images, model=subject.name, version=subject.version, top_k=1, logits=True, in_flight=_IN_FLIGHT
    )
    rows = [outcome.classification.logits for outcome in _progress(outcomes, len(images))]
    return np.stack([row for row in rows if row is not None])


class LocalNetwork:
    """A model of a repository on disk, run by onnxruntime in this process, as the server would on the CPU.

    Args:
        options: Of the command: models, model (name and version), precision, threads.

    Raises:
        TrainingError: There is no such model or version, or it cannot be run.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise TrainingError(
                "--models needs onnxruntime, which is not installed: pip install 'convlens[server]', or evaluate "
                "through a server by --server"
            )
        # The server's packages come with an extra of their own, which is not needed to ask a server.
        from convlens_server.device import Device, make_session
        from convlens_server.errors import ModelError
        from convlens_server.network import load_network

        name, version = options.model
        precision = options.precision or PRECISIONS[0]
        path = _file(options.models, name, version, precision)
        try:
            network = load_network(path)
            self._session = make_session(network.model.SerializeToString(), Device("cpu"), options.threads)
        except ModelError as error:
            raise TrainingError(str(error)) from None
        self._input, self._output, self._fixed = network.input_name, network.logits_name, network.fixed_batch
        manifest = network.manifest
        self.subject = Subject(
            name,
            int(path.parent.name),
            manifest.labels,
            _size(manifest.input),
            manifest.training,
            manifest.metrics,
            # Like the server: of what is in model.onnx its manifest knows.
            manifest.precision if precision == PRECISIONS[0] else precision,
            f"onnxruntime, {path.name}",
        )

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The logits of images, uint8 N × height × width × channels: float32 N × classes."""
        size = self._fixed or _BATCH
        parts = []
        with _progress(range(0, len(images), size), math.ceil(len(images) / size)) as starts:
            for start in starts:
                batch = images[start : start + size]
                count = len(batch)
                if self._fixed and count < size:
                    batch = np.concatenate([batch, np.zeros((size - count, *batch.shape[1:]), np.uint8)])
                parts.append(self._session.run([self._output], {self._input: batch})[0][:count])
        return np.concatenate(parts)


def _served(client: Client, options: argparse.Namespace) -> Subject:
    name, version = options.model
    model = client.model(name, version)
    training, metrics = model.manifest.get("training"), model.manifest.get("metrics")
    precision = str(model.manifest.get("precision", PRECISIONS[0]))
    return Subject(
        model.model,
        model.version,
        model.labels,
        ImageSize(model.height, model.width, model.channels),
        training if isinstance(training, dict) else {},
        metrics if isinstance(metrics, dict) else {},
        precision,
        f"the server at {options.server}, as {precision} on {model.device}",
    )


def _file(models: Path, name: str, version: int, precision: str) -> Path:
    """The model file of a repository; version 0 is the highest."""
    try:
        names = sorted(entry.name for entry in models.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if name not in names:
            near = difflib.get_close_matches(name, names, 3) or names
            raise TrainingError(f"model {name!r} is not in {models} (there are {', '.join(near) or 'none'})")
        folders = [entry for entry in (models / name).iterdir() if re.fullmatch(r"[1-9][0-9]*", entry.name)]
    except OSError as error:
        raise TrainingError(
            f"{models} cannot be read ({error.strerror}): give a model repository by --models"
        ) from None
    versions = sorted(int(folder.name) for folder in folders)
    number = version or max(versions, default=0)
    if number not in versions:
        known = ", ".join(map(str, versions)) or "none"
        raise TrainingError(f"model {name!r} in {models} has no version {number} (there are {known})")
    path = models / name / str(number) / file_name(precision)
    if not path.is_file():
        there = [each for each in PRECISIONS if path.with_name(file_name(each)).is_file()]
        raise TrainingError(
            f"{path} is missing: version {number} of {name!r} has {', '.join(there) or 'no files'}; choose one of "
            "them by --precision"
        )
    return path


def _held_out(options: argparse.Namespace, subject: Subject) -> datasets.Split:
    """The held-out images with the model's class indices."""
    seed = subject.training.get("seed", 0)
    # Where the data has no held-out part of its own, the model's training drew one by its seed: the same is drawn
    # again, so that no training image is in it.
    seed = seed if isinstance(seed, int) else 0
    dataset = datasets.load(options.data, subject.size, options.data_root, seed, threads=options.threads)
    if set(dataset.labels) != set(subject.labels):
        raise TrainingError(
            f"the labels of {dataset.name} are not those of {subject.name} version {subject.version} "
            f"({_difference('data', dataset.labels, subject.labels)}; "
            f"{_difference('model', subject.labels, dataset.labels)}): give the data that the model is for, or rename "
            "its class folders"
        )
    data = subject.training.get("data")
    trained_on = data.get("name") if isinstance(data, dict) else None
    if trained_on not in (None, dataset.name):
        print(
            f"{subject.name} was trained on {trained_on}, not on {dataset.name}: these images may be among those that "
            "it was trained on",
            file=sys.stderr,
        )
    order = np.array([subject.labels.index(label) for label in dataset.labels])
    for text in dataset.unreadable:
        print(f"skipped, unreadable: {text}", file=sys.stderr)
    return datasets.Split(dataset.test.images, order[dataset.test.labels])


def _difference(whose: str, labels: Sequence[str], others: Sequence[str]) -> str:
    only = sorted(set(labels) - set(others))
    some = ", ".join(only[:5]) + (f" and {len(only) - 5} more" if len(only) > 5 else "")
    return f"only in the {whose}: {some or 'none'}"


def _check_output(folder: Path | None) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise TrainingError(
            f"--output {folder} cannot be used ({error.strerror}): give a folder that can be written"
        ) from None
    if taken is not None:
        raise TrainingError(f"--output {folder} is not empty ({taken.name} is in it): give a new folder")


def _tell(
    options: argparse.Namespace, subject: Subject, evaluation: Evaluation, images: npt.NDArray[np.uint8], seconds: float
) -> None:
    said = subject.metrics.get("test_accuracy")
    facts = {
        "model": subject.name,
        "version": subject.version,
        "precision": subject.precision,
        "computed_by": subject.where,
        "data": options.data,
        "images": len(images),
        "manifest_accuracy": said if isinstance(said, float) else None,
        "images_per_second": len(images) / seconds,
    }
    title = f"{subject.name} version {subject.version} on {Path(options.data).name}"
    if options.output is not None:
        from convlens_training.report import write_evaluation  # imports matplotlib

        write_evaluation(options.output, title, evaluation, images, facts)
    if options.json:
        per_class = [asdict(each) for each in evaluation.per_class()]
        _show.as_json(
            {
                **facts,
                "accuracy": evaluation.accuracy,
                "accuracy_error": evaluation.accuracy_error,
                "loss": evaluation.loss,
                "per_class": [{key: _json(value) for key, value in each.items()} for each in per_class],
                "confusion": evaluation.confusion.tolist(),
            }
        )
        return
    print(f"{title}, computed by {subject.where}")
    print(headline(evaluation))
    if facts["manifest_accuracy"] is not None:
        print(f"the model's manifest says {said:.2%}")
    print()
    titles = [title.upper() for title in CLASS_TITLES]
    _show.table(titles, class_rows(evaluation), right=set(titles[1:]))
    if options.output is not None:
        print(f"\nreport: {options.output / 'report.md'}")


def _json(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _progress(items: Iterable[Any], total: int) -> tqdm[Any]:
    # disable=None: no bar where standard error is no terminal.
    return tqdm(items, desc="evaluating", total=total, leave=False, disable=None)


def _size(image: ImageInput) -> ImageSize:
    return ImageSize(image.height, image.width, image.channels)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convlens evaluate",
        description="Runs held-out images through a served or a published model, and reports how it does.",
        epilog="Where the data has no held-out part of its own, the one that the model's training held out is taken.",
        parents=[asking()],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, type=_model, metavar="NAME[:VERSION]", help="the highest version if not given"
    )
    parser.add_argument(
        "--data", required=True, metavar="NAME|FOLDER", help="as for convlens train; only its held-out part is used"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="as for convlens train")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="run the model of this repository here, through onnxruntime, instead of asking a server",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help=f"with --models: which file of the version (default: {PRECISIONS[0]})"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=1,
        metavar="N",
        help="of the CPU, to decode images and with --models to run the network (default: 1)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write report.md with its pictures there, into a new folder"
    )
    return parser


def _model(text: str) -> tuple[str, int]:
    name, colon, version = text.partition(":")
    if not name or (colon and not re.fullmatch(r"[1-9][0-9]{0,17}", version)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME:VERSION with a positive version")
    return name, int(version or 0)


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 1")
    return int(text)
