"""The figures of an evaluation in words, as pages and terminals show them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convlens_training.evaluation import Evaluation

CLASS_TITLES = ("label", "precision", "recall", "F1", "images")


def headline(evaluation: Evaluation) -> str:
    """One line: accuracy with its standard error, images, loss."""
    right = int((evaluation.answers == evaluation.truth).sum())
    return (
        f"accuracy {evaluation.accuracy:.2%} ± {evaluation.accuracy_error:.2%} (standard error): {right:,} of "
        f"{len(evaluation.truth):,} held-out images; loss {evaluation.loss:.4f}"
    )


def class_rows(evaluation: Evaluation) -> list[list[str]]:
    """Label, precision, recall, F1 and number of images of each class, and their means; "–" where undefined."""
    figures = evaluation.per_class()
    rows = [
        [each.label, *(share(value) for value in (each.precision, each.recall, each.f1)), f"{each.support:,}"]
        for each in figures
    ]
    means = [_mean(getattr(each, name) for each in figures) for name in ("precision", "recall", "f1")]
    return [*rows, ["mean of the classes", *map(share, means), f"{len(evaluation.truth):,}"]]


def share(value: float) -> str:
    """12.3%; – where it is not defined."""
    return "–" if math.isnan(value) else f"{value:.1%}"


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 07 s, 12 s or 0.4 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.fmean(defined) if defined else math.nan
