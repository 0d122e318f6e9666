"""What notebooks show of the clients' results: HTML that needs nothing beside itself."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image

from convlens import _pictures
from convlens._explanation import Explanation, WeightedSum, number
from convlens._lens_types import Attribution, Graph, Kernels, MaximizingImages, Sample
from convlens._types import Classification, FeatureMap, Layer, Model

# What is shown of what has more.
_MOST_CHANNELS = 64
_MOST_IMAGES = 4
_MOST_KERNELS = 32
_MOST_MATRICES = 4
_MOST_ROWS = 20
# Larger matrices are no use as numbers.
_LARGEST_MATRIX = 11

_BAR = "background:#4393c3;height:0.8em;display:inline-block;vertical-align:middle"
_IMAGE = "image-rendering:pixelated;max-width:100%;background:#fff"
_CELL = "padding:2px 6px;text-align:right;font-family:monospace;border:1px solid #8884"


def classification(result: Classification) -> str:
    """The predictions with bars."""
    rows = [
        [
            html.escape(prediction.label),
            f"{prediction.score:.2%}",
            f'<span style="{_BAR};width:{prediction.score * 12:.2f}em"></span>',
        ]
        for prediction in result.predictions
    ]
    return _titled(f"{result.model} {result.version}", _table(["label", "score", ""], rows))


def feature_map(layer: FeatureMap) -> str:
    """The first channels of the first images."""
    values = layer.activation
    # One image's: a layer with positions has channels × height × width, one without has units.
    images = [values] if values.ndim in (1, 3) else list(values[:_MOST_IMAGES])
    parts = [_image(_pictures.grid(image[:_MOST_CHANNELS] if image.ndim == 3 else image)) for image in images]
    left_out = ""
    if images and images[0].ndim == 3 and len(images[0]) > _MOST_CHANNELS:
        left_out = f", the first {_MOST_CHANNELS} channels"
    if values.ndim in (2, 4) and len(values) > _MOST_IMAGES:
        left_out += f", the first {_MOST_IMAGES} images"
    return _titled(f"{layer.layer} ({layer.kind}): {_size(values.shape)}{left_out}", "<br>".join(parts))


def model(version: Model) -> str:
    """Figures and the catalogue."""
    facts = (
        f"{version.height} × {version.width} × {version.channels} → {len(version.labels)} classes; "
        f"{version.parameters:,} parameters, {version.multiply_accumulates:,} multiply-accumulates an image; "
        f"on {version.device}"
    )
    return _titled(f"{version.model} {version.version}", html.escape(facts) + layers(version.layers))


def layers(catalogue: Sequence[Layer]) -> str:
    """A layer a row."""
    rows = [
        [
            html.escape(layer.name),
            html.escape(layer.kind),
            _size(layer.shape),
            _size(layer.kernel),
            _size(layer.receptive_field),
            f"{layer.parameters:,}",
            f"{layer.multiply_accumulates:,}",
        ]
        for layer in catalogue
    ]
    return _table(["layer", "kind", "output", "window", "receptive field", "parameters", "MACs"], rows)


def graph(network: Graph) -> str:
    """A layer a row, with what it saves against a fully connected one."""
    rows = [
        [
            html.escape(each.layer.name),
            html.escape(each.layer.kind),
            f"{each.units:,}",
            f"{each.connections:,}",
            f"{each.dense_connections:,}",
        ]
        for each in network.layers
    ]
    header = ["layer", "kind", "units", "connections", "if fully connected"]
    return _titled(f"{network.model} {network.version}", _table(header, rows))


def sample(one: Sample) -> str:
    """The image."""
    image = PIL.Image.open(io.BytesIO(one.file))
    return _titled(one.name, _file_image(one.file, image.format or "PNG", image.width))


def kernels(layer: Kernels) -> str:
    """The weights of the first output channels."""
    shown = layer.weights[:_MOST_KERNELS] if layer.weights.ndim > 1 else layer.weights
    left_out = f", the first {_MOST_KERNELS}" if len(shown) < len(layer.weights) else ""
    picture = _image(_pictures.kernels(shown))
    return _titled(f"{layer.layer} ({layer.kind}): {_size(layer.weights.shape)}{left_out}", picture)


def attribution(result: Attribution) -> str:
    """The overlay, or without one the map."""
    if result.overlay is not None:
        picture = _image(_pictures.enlarged(result.overlay))
    else:
        picture = _image(_pictures.attribution(result.map))
    of = f" of {result.layer}" if result.layer else ""
    title = f"{result.prediction.label} ({result.prediction.score:.2%}): {result.method}{of}"
    return _titled(title, picture)


def explanation(unit: Explanation) -> str:
    """The line of arithmetic, and for weighted sums the numbers: those of the channels that weigh most."""
    arithmetic = unit.arithmetic
    body = ""
    if isinstance(arithmetic, WeightedSum):
        body = _contributions(arithmetic) if arithmetic.patch.values[0].size <= 1 else _matrices(arithmetic)
    return _titled(str(unit), body)


def maximizing(result: MaximizingImages) -> str:
    """The images if they were asked for, else their names."""
    rows = []
    for each in result.images:
        picture = _file_image(each.image, "PNG", 64) if each.image else ""
        rows.append([picture, html.escape(each.file), number(each.activation), f"{each.row}, {each.column}"])
    title = f"{result.layer}[{result.channel}] in {result.dataset}"
    return _titled(title, _table(["", "file", "activation", "row, column"], rows))


def _matrices(arithmetic: WeightedSum) -> str:
    order = np.argsort(-np.abs(arithmetic.channel_sums), kind="stable")[:_MOST_MATRICES]
    channels = len(arithmetic.channel_sums)
    rows = []
    for channel in sorted(order):
        cells = [_matrix(each[channel]) for each in (arithmetic.patch.values, arithmetic.weights, arithmetic.products)]
        place = arithmetic.patch.first[0] + int(channel)
        rows.append([str(place), *cells, f"Σ = {number(arithmetic.channel_sums[channel])}"])
    left_out = f"<div>{channels - len(rows)} more channels</div>" if channels > len(rows) else ""
    header = [f"channel of {html.escape(arithmetic.patch.layer)}", "values", "kernel", "products", ""]
    return _table(header, rows) + left_out


def _contributions(arithmetic: WeightedSum) -> str:
    flat = [each.ravel() for each in (arithmetic.patch.values, arithmetic.weights, arithmetic.products)]
    first = arithmetic.patch.first[0]
    rows = [
        [str(first + position), *(number(each[position]) for each in flat)]
        for position in arithmetic.largest[:_MOST_ROWS]
    ]
    return _table([f"of {html.escape(arithmetic.patch.layer)}", "value", "weight", "product"], rows)


def _matrix(values: npt.NDArray[np.float32]) -> str:
    if max(values.shape) > _LARGEST_MATRIX:
        return _image(_pictures.grid(values[None]))
    return _table((), [[number(value) for value in row] for row in values])


def _titled(title: str, body: str) -> str:
    return f"<div><strong>{html.escape(title)}</strong><br>{body}</div>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th style="{_CELL}">{title}</th>' for title in header)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<table style="border-collapse:collapse">{f"<tr>{head}</tr>" if head else ""}{body}</table>'


def _image(image: PIL.Image.Image) -> str:
    return _file_image(_pictures.png(image), "PNG", image.width)


def _file_image(file: bytes, form: str, width: int) -> str:
    data = base64.b64encode(file).decode("ascii")
    return f'<img src="data:image/{form.lower()};base64,{data}" style="{_IMAGE};width:{max(width, 96)}px">'


def _size(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))
