"""Draws a run: its curves, its confusion matrix, its worst mistakes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from convlens_training.evaluation import Evaluation
from convlens_training.files import replacing

_DPI = 120
# Around pictures, inches.
_MARGIN = 0.1
_INK, _FAINT, _WRONG = "#333333", "#d8d8d8", "#bb2211"
# Told apart by those who do not see red and green as well: Paul Tol's "bright".
_TRAINING, _VALIDATION = "#4477aa", "#ee6677"
# Up to so many classes cells are large, counts fit into the cells, and labels beside the rows.
_FEW, _COUNTS_FIT, _LABELS_FIT = 12, 25, 80
# The grid of mistakes: tiles, and pixels.
_MOST_MISTAKES, _COLUMNS, _TILE, _GAP, _CAPTION = 40, 8, 140, 12, 36


def curves(epochs: Sequence[Mapping[str, float]], measured_on: str = "validation") -> Figure:
    """Loss, accuracy and learning rate by epoch, in training and in validation, side by side.

    Args:
        epochs: Lines of metrics.jsonl, at least one; a number may be missing or nan.
        measured_on: What the images of the validation are called.
    """
    figure = Figure(figsize=(13, 3.9), dpi=_DPI, layout=ConstrainedLayoutEngine(h_pad=_MARGIN, w_pad=_MARGIN))
    loss, accuracy, rate = figure.subplots(1, 3, gridspec_kw={"wspace": 0.06})
    numbers = [line["epoch"] for line in epochs]

    def draw(axes: Axes, key: str, colour: str, label: str) -> None:
        values = [line.get(key, math.nan) for line in epochs]
        # Single points are invisible without markers; many of them hide the line.
        marker = "o" if len(values) <= 30 else ""
        if not all(math.isnan(value) for value in values):
            axes.plot(numbers, values, color=colour, label=label, linewidth=1.8, marker=marker, markersize=3.5)

    for axes, what, title in ((loss, "loss", "Loss"), (accuracy, "accuracy", "Accuracy")):
        draw(axes, f"train_{what}", _TRAINING, "training")
        draw(axes, f"validation_{what}", _VALIDATION, measured_on)
        _plain_axes(axes, title)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
    accuracy.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    draw(rate, "learning_rate", _INK, "learning rate")
    _plain_axes(rate, "Learning rate at the epoch's end")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """The confusion matrix: a row for each label, the colour is the share of the row, the number is the count."""
    counts = evaluation.confusion
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    numbered = classes <= _COUNTS_FIT
    cell = 0.62 if classes <= _FEW else 0.48 if numbered else min(0.22, 14 / classes)
    side = max(cell * classes, 2.5)
    size = 9 if numbered else max(4.0, 72 * cell * 0.7)
    names = [_short(label, 24) for label in evaluation.labels] if classes <= _LABELS_FIT else []
    # Room for the names in inches: a letter is about 0.62 times as wide as high.
    room = max((len(name) for name in names), default=3) * size * 0.62 / 72
    level = all(len(name) <= 3 for name in names)
    below = 0.2 if level else room * 0.65 if numbered else room
    figure = Figure(
        figsize=(side + room + 1.4, side + below + 0.8),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(h_pad=_MARGIN, w_pad=_MARGIN),
    )
    axes = figure.subplots()
    # By its square root: of many classes each mistake is a small share, and would be as good as white.
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest")
    bar = figure.colorbar(
        image, ax=axes, fraction=0.16 / side, aspect=0.8 * side / 0.16, shrink=0.8, pad=0.15 / side,
        ticks=(0, 0.01, 0.05, 0.1, 0.25, 0.5, 1), format=FuncFormatter(_percent_tick),
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.ax.minorticks_off()
    bar.set_label("share of the label's images", fontsize=9)
    if names:
        axes.set_xticks(range(classes), names, rotation=0 if level else 40 if numbered else 90, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
        for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            tick.set_parse_math(False)
        if numbered and not level:
            for tick in axes.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
    if numbered:
        for row, column in zip(*np.nonzero(counts), strict=True):
            light = scale(shares[row, column]) > 0.55
            text = str(counts[row, column])
            axes.text(
                column, row, text, ha="center", va="center", fontsize={1: 10, 2: 10, 3: 9, 4: 8}.get(len(text), 6),
                color="white" if light else _INK,
            )  # fmt: skip
        # Lines between the cells.
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=_FAINT, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("answer", fontsize=10)
    axes.set_ylabel("label", fontsize=10)
    figure.suptitle(
        f"{evaluation.accuracy:.2%} of {len(evaluation.truth):,} images are answered right", fontsize=11, color=_INK
    )
    return figure


def mistakes(evaluation: Evaluation, images: npt.NDArray[np.uint8]) -> Figure | None:
    """The images that the network is most wrong about, with label and answer and the scores of both.

    Args:
        evaluation: Of the images.
        images: uint8 N × height × width × channels.

    Returns:
        At most 40, those whose answer is furthest above their label first; None where there are no mistakes.
    """
    scores, answers, truth = evaluation.scores, evaluation.answers, evaluation.truth
    wrong = np.flatnonzero(answers != truth)
    if not len(wrong):
        return None
    # Scores of 0 are many where the network is sure; logits still tell how far apart they are.
    values = evaluation.logits.astype(np.float64)
    behind = values[wrong, answers[wrong]] - values[wrong, truth[wrong]]
    worst = wrong[np.argsort(-behind, kind="stable")][:_MOST_MISTAKES]
    height, width = images.shape[1:3]
    # By a whole number, so that every pixel keeps its square.
    scale = max(1, _TILE // max(height, width)) if max(height, width) <= 2 * _TILE else 2 * _TILE / max(height, width)
    tile_height, tile_width = round(height * scale), round(width * scale)
    step_x, step_y = max(tile_width, _TILE) + _GAP, tile_height + _CAPTION + _GAP
    columns = min(_COLUMNS, len(worst))
    rows = math.ceil(len(worst) / columns)
    full_width, full_height = columns * step_x + _GAP, rows * step_y + _GAP
    figure = Figure(figsize=(full_width / _DPI, full_height / _DPI), dpi=_DPI)
    letters = max(step_x // 8, 8)
    for place, index in enumerate(worst):
        left = _GAP + place % columns * step_x
        bottom = full_height - (place // columns + 1) * step_y
        axes = figure.add_axes(
            (left / full_width, bottom / full_height, tile_width / full_width, tile_height / full_height)
        )
        axes.set_axis_off()
        pixels = images[index]
        axes.imshow(
            pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255, aspect="auto",
            interpolation="nearest" if scale >= 1 else "antialiased",
        )  # fmt: skip
        for label, before, colour, above in ((truth[index], "", _INK, 20), (answers[index], "→ ", _WRONG, 5)):
            score = f" · {math.floor(scores[index, label] * 100)}%"
            text = f"{before}{_short(evaluation.labels[label], letters - len(before) - len(score))}{score}"
            figure.text(
                left / full_width, (bottom + tile_height + above) / full_height, text, fontsize=7.5, color=colour,
                parse_math=False,
            )  # fmt: skip
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file. Raises TrainingError where that is refused."""
    with replacing(path) as file, warnings.catch_warnings():
        # Labels may have letters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", facecolor="white")


def _plain_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, color=_INK, loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _percent_tick(value: float, _: int | None = None) -> str:
    return f"{value * 100:.4g}%"


def _short(label: str, letters: int) -> str:
    return label if len(label) <= letters else f"{label[: max(letters - 1, 1)].rstrip()}…"
