"""What a network answers on labelled images, and the figures that follow."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convlens_training.errors import TrainingError
from convlens_training.files import replacing


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """How one class does; fractions, nan where there is nothing to divide by.

    Attributes:
        label: Of the class.
        precision: Of the images answered with this class, the share that are of it.
        recall: Of the images of this class, the share answered with it.
        f1: Harmonic mean of the two.
        support: How many images are of this class.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Answers beside the truth.

    Attributes:
        labels: C of them, by class index.
        truth: int64 N, class indices; N ≥ 1.
        logits: float32 N × C.

    Raises:
        TrainingError: The shapes or the class indices do not fit each other, or a logit is nan.
    """

    labels: tuple[str, ...]
    truth: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        """Checks what the attributes promise."""
        count, classes = len(self.truth), len(self.labels)
        if self.truth.shape != (count,) or self.logits.shape != (count, classes) or not count:
            raise TrainingError(
                f"an evaluation has logits of shape {self.logits.shape} and truth of shape {self.truth.shape}, but "
                f"needs N × {classes} and N, one column for each label and N at least 1"
            )
        if self.truth.min() < 0 or self.truth.max() >= classes:
            raise TrainingError(
                f"an evaluation has class {self.truth.min()} … {self.truth.max()}, but its {classes} labels are for "
                f"0 … {classes - 1}"
            )
        if np.isnan(self.logits).any():
            raise TrainingError("an evaluation has logits that are no number: the network's weights are broken")

    @property
    def answers(self) -> npt.NDArray[np.int64]:
        """int64 N: the class with the highest logit; of equal ones the first."""
        answers: npt.NDArray[np.int64] = self.logits.argmax(1).astype(np.int64, copy=False)
        return answers

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """float32 N × C: the softmax of the logits."""
        return np.exp(self._log_scores()).astype(np.float32)

    @property
    def accuracy(self) -> float:
        """The fraction of images that are answered with their label."""
        return float((self.answers == self.truth).mean())

    @property
    def accuracy_error(self) -> float:
        """The standard error of the accuracy: √(p (1 − p) / N), as if images were drawn at random."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.truth))

    @property
    def loss(self) -> float:
        """The mean cross-entropy, in nats."""
        return float(-self._log_scores()[np.arange(len(self.truth)), self.truth].mean())

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """int64 C × C: how many images of each class (row) are answered with each class (column)."""
        classes = len(self.labels)
        return np.bincount(self.truth * classes + self.answers, minlength=classes**2).reshape(classes, classes)

    def per_class(self) -> tuple[ClassFigures, ...]:
        """Precision, recall, F1 and support of each class, by class index."""
        confusion = self.confusion
        figures = []
        for index, label in enumerate(self.labels):
            right, answered = int(confusion[index, index]), int(confusion[:, index].sum())
            support = int(confusion[index].sum())
            precision, recall = _share(right, answered), _share(right, support)
            # The same as 2 / (1/precision + 1/recall), but defined where one of them is 0.
            figures.append(ClassFigures(label, precision, recall, _share(2 * right, answered + support), support))
        return tuple(figures)

    def save(self, path: Path) -> None:
        """Writes a NumPy archive with labels, truth and logits. Raises TrainingError where that is refused."""
        with replacing(path) as file:
            np.savez(file, labels=np.array(self.labels), truth=self.truth, logits=self.logits)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Reads what `save` wrote.

        Raises:
            TrainingError: The file is missing, or no such archive.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                labels = tuple(str(label) for label in archive["labels"])
                return cls(labels, archive["truth"].astype(np.int64), archive["logits"].astype(np.float32))
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} is no saved evaluation: {' '.join(str(error).split())}") from None

    def _log_scores(self) -> npt.NDArray[np.float64]:
        logits = self.logits.astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return logits


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
