"""Draws the clients' results with matplotlib, which the extra `plot` has."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from convlens import _pictures
from convlens._explanation import Elementwise, Explanation, Pooling, Softmax, WeightedSum, number
from convlens._lens_types import Attribution, Kernels, MaximizingImages
from convlens._types import FeatureMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is shown of what has more.
_MOST_CHANNELS = 64
_MOST_IMAGES = 4
_MOST_KERNELS = 16
_MOST_MATRICES = 4
_MOST_BARS = 40
# Cells of larger matrices have no room for their numbers.
_LARGEST_MATRIX = 7

_QUIET, _LOUD = "#4393c3", "#d6604d"


def feature_map(layer: FeatureMap, figure: Figure | None) -> Figure:
    """The channels of up to 4 images as tiles, each by its own range; units as bars."""
    values = layer.activation
    images = [values] if values.ndim in (1, 3) else list(values[:_MOST_IMAGES])
    units = images[0].ndim != 3 or images[0].shape[1:] == (1, 1)
    pictures = [] if units else [np.asarray(_pictures.grid(image[:_MOST_CHANNELS])) for image in images]
    high = 2.6 if units else 0.1 + 7.0 * pictures[0].shape[0] / pictures[0].shape[1]
    figure = _figure(figure, (7.0, 0.4 + high * len(images)))
    for place, axes in enumerate(_rows(figure, len(images))):
        if units:
            values_of = images[place].ravel()
            axes.bar(layer.channels or range(values_of.size), values_of, color=_QUIET, width=0.9)
            axes.set_xlabel("unit")
        else:
            axes.imshow(pictures[place])
            axes.set_axis_off()
    some = f", the first {_MOST_CHANNELS}" if not units and len(images[0]) > _MOST_CHANNELS else ""
    figure.suptitle(f"{layer.layer} ({layer.kind}): {'×'.join(map(str, values.shape))}{some}")
    return figure


def kernels(layer: Kernels, figure: Figure | None) -> Figure:
    """A row an output channel, with the colours' scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    shown = layer.weights[:_MOST_KERNELS] if layer.weights.ndim > 1 else layer.weights
    picture = np.asarray(_pictures.kernels(shown))
    high, wide = picture.shape[:2]
    # A dense layer's matrix is filled in: its squares would be a line.
    matrix = shown.ndim == 2
    height = 4.0 if matrix else min(9.0, 0.8 + 6.0 * high / wide)
    # As wide as the picture and its scale: of few input channels the picture is a narrow strip.
    figure = _figure(figure, (7.0 if matrix else max(3.5, 1.0 + (height - 0.8) * wide / high), height))
    (axes,) = _rows(figure, 1)
    axes.imshow(picture, aspect="auto" if matrix else "equal")
    axes.set_axis_off()
    largest = float(np.abs(shown).max()) or 1.0
    colours = LinearSegmentedColormap.from_list("weights", [tuple(stop / 255) for stop in _pictures.WEIGHTS])
    scale = ScalarMappable(Normalize(-largest, largest), colours)
    figure.colorbar(scale, ax=axes, shrink=0.8, label="weight")
    some = f", the first {_MOST_KERNELS}" if len(shown) < len(layer.weights) else ""
    figure.suptitle(f"{layer.layer} ({layer.kind}): {'×'.join(map(str, layer.weights.shape))}{some}")
    return figure


def attribution(result: Attribution, figure: Figure | None) -> Figure:
    """The map with its scale, and the overlay."""
    parts = 1 if result.overlay is None else 2
    figure = _figure(figure, (4.4 * parts, 4.0))
    axes = [figure.add_subplot(1, parts, part + 1) for part in range(parts)]
    largest = float(np.abs(result.map).max()) or 1.0
    if (result.map < 0).any():
        image = axes[0].imshow(result.map, cmap="RdBu_r", vmin=-largest, vmax=largest)
    else:
        image = axes[0].imshow(result.map, cmap="viridis", vmin=0, vmax=largest)
    label = "fall of the score" if result.method == "occlusion" else "share of the largest"
    figure.colorbar(image, ax=axes[0], shrink=0.8, label=label)
    if result.overlay is not None:
        axes[1].imshow(result.overlay)
    for each in axes:
        each.set_axis_off()
    of = f" of {result.layer}" if result.layer else ""
    figure.suptitle(f"{result.prediction.label} ({result.prediction.score:.2%}): {result.method}{of}")
    return figure


def maximizing(result: MaximizingImages, figure: Figure | None) -> Figure:
    """The images in rows of three, each with its unit's receptive field."""
    from matplotlib.patches import Rectangle

    files = [image for image in result.images if image.image is not None]
    if not files:
        raise ValueError("there are no images to draw: ask for them with maximizing(…, images=True)")
    columns = min(3, len(files))
    rows = -(-len(files) // columns)
    figure = _figure(figure, (2.4 * columns, 2.7 * rows))
    for place, each in enumerate(files, 1):
        axes = figure.add_subplot(rows, columns, place)
        image = PIL.Image.open(io.BytesIO(each.image or b""))
        axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
        field = each.receptive_field
        corner = (field.left - 0.5, field.top - 0.5)
        # With a white border, to be seen on any image.
        for colour, width in (("white", 4), (_LOUD, 2)):
            axes.add_patch(Rectangle(corner, field.width, field.height, fill=False, edgecolor=colour, linewidth=width))
        axes.set_xlim(-0.5, image.width - 0.5)
        axes.set_ylim(image.height - 0.5, -0.5)
        axes.set_axis_off()
        axes.set_title(f"{number(each.activation)}  {each.file}"[:40], fontsize=8)
    figure.suptitle(f"{result.layer}[{result.channel}] in {result.dataset}")
    return figure


def explanation(unit: Explanation, figure: Figure | None) -> Figure:
    """The values, what is done to them, and what comes of it."""
    arithmetic = unit.arithmetic
    if isinstance(arithmetic, WeightedSum):
        at_most_one = arithmetic.patch.values[0].size <= 1
        figure = _contributions(arithmetic, figure) if at_most_one else _matrices(arithmetic, figure)
    elif isinstance(arithmetic, Pooling):
        figure = _figure(figure, (4.0, 4.2))
        (axes,) = _rows(figure, 1)
        window = arithmetic.patch.values
        # A reduction over channels takes several: a row for each.
        _matrix(axes, window[0] if len(window) == 1 else window.reshape(len(window), -1), "Greys_r", arithmetic.argmax)
    elif isinstance(arithmetic, Softmax):
        scores = arithmetic.exponentials / arithmetic.sum
        # Of many classes the first; the unit's own is among them or comes last.
        shown = list(range(scores.size))
        if scores.size > _MOST_BARS:
            shown = np.argsort(-scores, kind="stable")[:_MOST_BARS].tolist()
            shown[-1] = shown[-1] if arithmetic.index in shown else arithmetic.index
        place = shown.index(arithmetic.index)
        figure = _bars(figure, list(map(str, shown)), scores[shown], place, "score")
    else:
        patches = arithmetic.patches if isinstance(arithmetic, Elementwise) else (arithmetic.patch,)
        names = [_place(patch.layer, patch.first) for patch in patches]
        values = [float(patch.values.ravel()[0]) for patch in patches]
        own = _place(unit.layer, (unit.channel, unit.row, unit.column))
        figure = _bars(figure, [*names, own], np.array([*values, unit.result]), len(values), "value")
    figure.suptitle(str(unit), fontsize=9, wrap=True)
    return figure


def _matrices(arithmetic: WeightedSum, figure: Figure | None) -> Figure:
    """The channels that weigh most: values, kernel and products beside each other."""
    order = sorted(np.argsort(-np.abs(arithmetic.channel_sums), kind="stable")[:_MOST_MATRICES])
    figure = _figure(figure, (8.0, 0.8 + 2.5 * len(order)))
    parts = [("values", arithmetic.patch.values, "Greys_r"), ("kernel", arithmetic.weights, "BrBG"),
             ("products", arithmetic.products, "RdBu_r")]  # fmt: skip
    for row, channel in enumerate(order):
        for column, (name, values, colours) in enumerate(parts):
            axes = figure.add_subplot(len(order), 3, row * 3 + column + 1)
            _matrix(axes, values[channel], colours)
            title = name if row == 0 else ""
            if name == "products":
                title = f"{title}  Σ = {number(arithmetic.channel_sums[channel])}".strip()
            elif name == "values":
                title = f"{_place(arithmetic.patch.layer, (arithmetic.patch.first[0] + int(channel),))}  {title}"
            axes.set_title(title, fontsize=9)
    return figure


def _contributions(arithmetic: WeightedSum, figure: Figure | None) -> Figure:
    """The largest products, as bars."""
    first = arithmetic.patch.first[0]
    names = [_place(arithmetic.patch.layer, (first + position,)) for position in arithmetic.largest]
    products = arithmetic.products.ravel()[list(arithmetic.largest)]
    return _bars(figure, names, products, None, "value × weight, the largest")


def _bars(figure: Figure | None, names: Sequence[str], values: npt.NDArray[Any], own: int | None, label: str) -> Figure:
    figure = _figure(figure, (6.0, 1.2 + 0.26 * len(names)))
    (axes,) = _rows(figure, 1)
    colours = [_LOUD if place == own else _QUIET for place in range(len(names))]
    bars = axes.barh(range(len(names)), values, color=colours)
    axes.bar_label(bars, [number(value) for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    return figure


def _matrix(axes: Axes, values: npt.NDArray[np.float32], colours: str, outlined: int | None = None) -> None:
    """Cells with their numbers, where there is room; what is infinite lies in padding."""
    from matplotlib.patches import Rectangle

    shown = np.where(np.isfinite(values), values, 0)
    largest = float(np.abs(shown).max()) or 1.0
    signed = colours != "Greys_r" or bool((shown < 0).any())
    image = axes.imshow(shown, cmap="RdBu_r" if signed and colours == "Greys_r" else colours,
                        vmin=-largest if signed else 0, vmax=largest)  # fmt: skip
    if max(values.shape) <= _LARGEST_MATRIX:
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = image.cmap(image.norm(shown[row, column]))
            ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            axes.text(column, row, number(value), ha="center", va="center", fontsize=8, color=ink)
    if outlined is not None:
        row, column = divmod(outlined, values.shape[1])
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=_LOUD, linewidth=3))
    axes.set_xticks([])
    axes.set_yticks([])


def _place(layer: str, unit: Sequence[int]) -> str:
    return f"{layer or 'constant'}[{', '.join(map(str, unit))}]"


def _rows(figure: Figure, count: int) -> list[Axes]:
    return [figure.add_subplot(count, 1, row + 1) for row in range(count)]


def _figure(figure: Figure | None, size: tuple[float, float]) -> Figure:
    """The figure given, or a new one that belongs to nobody: pyplot would keep it. Width and height in inches."""
    if figure is not None:
        return figure
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"plots need {error.name}, which is missing: pip install 'convlens[plot]'", name=error.name
        ) from None
    return Figure(size, layout="constrained")
