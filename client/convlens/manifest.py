"""The manifest: what an ONNX classifier needs to be used, as one JSON document in its metadata.

It travels in the ONNX file's `metadata_props` under the key `convlens.manifest`; a `manifest.json` beside the
file overrides it. Training writes it, the server reads it, and preprocessing is described nowhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

METADATA_KEY = "convlens.manifest"
FORMAT = 1

# Of weights and arithmetic; a version has one file for each, the first at least.
PRECISIONS = ("float32", "float16", "int8")


def file_name(precision: str) -> str:
    """The file of a precision in a version's folder: model.onnx for float32, model.<precision>.onnx for another."""
    return "model.onnx" if precision == PRECISIONS[0] else f"model.{precision}.onnx"


class ManifestError(ValueError):
    """A manifest does not parse; the text names the field, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The image that a network takes, and how its pixels become the network's values.

    A pixel of value p (0 … 255) of channel c enters the network as (p / 255 × (high − low) + low − mean[c]) / std[c].
    Where `in_graph` is true the graph does this itself and takes uint8 N × height × width × channels; otherwise
    the graph takes the normalised float32 values and the server puts the arithmetic in front of it.
    """

    height: int
    width: int
    channels: int
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    in_graph: bool = False

    def __post_init__(self) -> None:
        """Raises ManifestError where a number is out of its range."""
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= 65535:
                raise ManifestError(f"input.{name} is {getattr(self, name)}, but must be 1 … 65535")
        if self.channels not in (1, 3):
            raise ManifestError(f"input.channels is {self.channels}, but must be 1 (grey) or 3 (RGB)")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.channels:
                raise ManifestError(
                    f"input.{name} has {len(values)} numbers, but the image has {self.channels} channels"
                )
            if not all(math.isfinite(v) for v in values):
                raise ManifestError(f"input.{name} is {list(values)}, but its numbers must be finite")
        if any(v <= 0 for v in self.std):
            raise ManifestError(f"input.std is {list(self.std)}, but its numbers must be positive")
        low, high = self.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ManifestError(f"input.value_range is [{low}, {high}], but must be finite and ascending")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model file says of itself.

    Attributes:
        labels: One for each class, by class index.
        input: The image it takes.
        description: One line for people.
        metrics: What was measured on held-out data, e.g. {"test_accuracy": 0.9931}; fractions, not per cent.
        training: Provenance: network, data, recipe, versions; any JSON values.
        precision: Of weights and arithmetic, one of PRECISIONS; the metrics are those of this precision.
    """

    labels: tuple[str, ...]
    input: ImageInput
    description: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    precision: str = PRECISIONS[0]

    def __post_init__(self) -> None:
        """Raises ManifestError where the precision is none."""
        if self.precision not in PRECISIONS:
            raise ManifestError(f"precision is {self.precision!r}, but must be one of {', '.join(PRECISIONS)}")

    def to_json(self) -> str:
        """The JSON document, keys in a fixed order."""
        document = {"format": FORMAT, **asdict(self)}
        return json.dumps(document, ensure_ascii=False, indent=1, default=dict)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Reads a JSON document.

        Raises:
            ManifestError: It is not JSON, a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ManifestError(f"a JSON {type(document).__name__}, but must be an object")
        version = document.pop("format", FORMAT)
        if version != FORMAT:
            raise ManifestError(f"format is {version!r}, but this release reads {FORMAT}")
        known = {"labels", "input", "description", "metrics", "training", "precision"}
        if unknown := sorted(set(document) - known):
            raise ManifestError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        labels = _take(document, "labels", list)
        if not labels or not all(isinstance(label, str) for label in labels):
            raise ManifestError("labels must be a list of at least one string")
        return cls(
            labels=tuple(labels),
            input=_image_input(_take(document, "input", dict)),
            description=_take(document, "description", str, ""),
            metrics=_metrics(_take(document, "metrics", dict, {})),
            training=_take(document, "training", dict, {}),
            precision=_take(document, "precision", str, PRECISIONS[0]),
        )


def _take(document: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = document.get(key, default)
    if value is None:
        raise ManifestError(f"field {key!r} is missing")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ManifestError(f"field {key!r} is a {type(value).__name__}, but must be a {kind.__name__}")
    return value


def _numbers(document: dict[str, Any], key: str, default: list[float]) -> tuple[float, ...]:
    values = _take(document, key, list, default)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ManifestError(f"input.{key} is {values!r}, but must be a list of numbers")
    return tuple(float(v) for v in values)


def _image_input(document: dict[str, Any]) -> ImageInput:
    known = {"height", "width", "channels", "value_range", "mean", "std", "in_graph"}
    if unknown := sorted(set(document) - known):
        raise ManifestError(f"unknown field input.{unknown[0]}; known are {', '.join(sorted(known))}")
    value_range = _numbers(document, "value_range", [0.0, 1.0])
    if len(value_range) != 2:
        raise ManifestError(f"input.value_range has {len(value_range)} numbers, but must have 2")
    return ImageInput(
        height=_take(document, "height", int),
        width=_take(document, "width", int),
        channels=_take(document, "channels", int),
        value_range=(value_range[0], value_range[1]),
        mean=_numbers(document, "mean", []),
        std=_numbers(document, "std", []),
        in_graph=_take(document, "in_graph", bool, False),
    )


def _metrics(document: dict[str, Any]) -> dict[str, float]:
    for key, value in document.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ManifestError(f"metrics.{key} is {value!r}, but must be a number")
    return {key: float(value) for key, value in document.items()}
