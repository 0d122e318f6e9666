"""The checkpoints of a run: the last epoch's and the best one's, each whole or not there."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convlens_training.errors import TrainingError
from convlens_training.files import UNFINISHED, replacing

# What a checkpoint's run is called in errors, and the cure where it is another one's.
_CURES = {
    "network": "give the folder of a run of this network",
    "labels": "its data has other classes now: restore them, or begin anew without --resume",
    "data": "its data has changed since: restore it, or begin anew without --resume",
    "recipe": "its config.yaml has changed since: restore it, or begin anew without --resume",
    "seed": "its config.yaml has changed since: restore it, or begin anew without --resume",
}


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints in a folder.

    Attributes:
        folder: Where they are: last.ckpt, and best.ckpt where there is a validation part.
        identity: What they belong to: "network", "labels", "data" (its hash), "recipe", "seed"; plain values.
    """

    folder: Path
    identity: Mapping[str, Any]

    def save(self, state: Mapping[str, Any], *, best: bool) -> None:
        """Writes an epoch's state as the last one, and as the best one too.

        Raises:
            TrainingError: The file system refuses; what was there before is still there.
        """
        # The best first: if a kill comes between, the epoch is done again and writes the same once more.
        for name in ("best.ckpt", "last.ckpt") if best else ("last.ckpt",):
            with replacing(self.folder / name) as file:
                try:
                    torch.save({**state, "identity": dict(self.identity)}, file)
                except RuntimeError as error:
                    # What torch's writer makes of a write that failed halfway: "unexpected pos 401088 vs 401040".
                    raise OSError(f"torch could not write all of it: {error}") from None

    def last(self) -> dict[str, Any] | None:
        """The state after the last epoch that was finished; None before the first. Raises TrainingError.

        What a kill has left of checkpoints that were being written is removed.
        """
        for unfinished in self.folder.glob(UNFINISHED):
            unfinished.unlink(missing_ok=True)
        return self._load("last.ckpt")

    def best(self) -> dict[str, Any] | None:
        """The state after the best epoch; None where there is none. Raises TrainingError."""
        return self._load("best.ckpt")

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            found = state["identity"]
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TrainingError(f"{path} is no checkpoint of ours or is damaged ({reason}): begin anew") from None
        for key, cure in _CURES.items():
            if found.get(key) != self.identity[key]:
                raise TrainingError(f"{path} has {key} {found.get(key)}, not {self.identity[key]}: {cure}")
        return state
