"""What the clients take and give back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from convlens._errors import Error

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure

# An image file: its path, its content, or what Pillow made of it.
FileLike: TypeAlias = "str | os.PathLike[str] | bytes | PIL.Image.Image"
# One image: a file, or pixels, uint8, H×W or H×W×C.
ImageLike: TypeAlias = "FileLike | npt.NDArray[np.uint8]"
# How the values of feature maps travel: exact, or in half or a quarter of the bytes.
MapDtype: TypeAlias = Literal["float32", "float16", "uint8"]
# Whether a version answers: an unloaded one is loaded for the first who asks.
ModelState: TypeAlias = Literal["ready", "failed", "loading", "unloaded"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class with its score.

    Attributes:
        label: From the model's manifest.
        index: 0 … classes − 1.
        score: Softmax output, 0 … 1.
    """

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """What a model says of one image.

    Attributes:
        predictions: The top_k classes, highest score first; at least one.
        model: Name of the model that answered.
        version: Version that answered, positive.
        queue_ms: From the request's arrival in the queue to the start of its batch, milliseconds.
        compute_ms: Time its batch took in the engine, milliseconds.
        scores: float32, one for each class, each 0 … 1, their sum 1; None unless asked for.
        logits: float32, one for each class; None unless asked for.
    """

    predictions: tuple[Prediction, ...]
    model: str
    version: int
    queue_ms: float
    compute_ms: float
    scores: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    logits: npt.NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """The label of the class with the highest score."""
        return self.predictions[0].label

    @property
    def index(self) -> int:
        """The index of the class with the highest score."""
        return self.predictions[0].index

    @property
    def score(self) -> float:
        """The highest score, 0 … 1."""
        return self.predictions[0].score

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.classification(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image of a stream: a classification or an error.

    Attributes:
        position: The image's place in the stream, from 0.
        error: Why this image alone failed; None if it did not.
    """

    position: int
    error: Error | None
    _classification: Classification | None = None

    @property
    def classification(self) -> Classification:
        """The classification. Where the image failed, raises its error."""
        if self._classification is None:
            assert self.error is not None
            raise self.error
        return self._classification


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """The feature maps of one layer.

    Attributes:
        layer: The layer's name.
        kind: conv, relu, max_pool, dense, softmax, …
        activation: float32, N × channels × height × width; N × units for a layer without positions; other ranks stand
            as the network has them. Without the first dimension where a single image was given.
        channels: The network's index of each channel (or unit) of `activation`.
        model: Name of the model that answered.
        version: Version that answered, positive.
        queue_ms: From arrival to the start of the computation, milliseconds.
        compute_ms: Time that all layers of the request took in the engine, milliseconds.
    """

    layer: str
    kind: str
    activation: npt.NDArray[np.float32]
    channels: tuple[int, ...]
    model: str
    version: int
    queue_ms: float
    compute_ms: float

    def plot(self, figure: Figure | None = None) -> Figure:
        """Draws the channels (the first 64) as tiles, each by its own range, or the units as bars; at most 4 images.

        Args:
            figure: What to draw into, e.g. `matplotlib.pyplot.figure()`; None makes a new one.

        Raises:
            ModuleNotFoundError: matplotlib is missing; the extra `plot` has it.
        """
        from convlens import _plots

        return _plots.feature_map(self, figure)

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.feature_map(self)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, in short. The numbers are 0 unless it is ready.

    Attributes:
        model: Name in the server's repository.
        version: Positive; 0 stands for a model of which no version can be served.
        state: Whether it answers.
        error: Why it failed; of a ready one, why what answers is not what stands in the repository now; else empty.
        is_default: Whether a call that names no version gets this one.
        classes: Number of classes.
        height: Input height, pixels.
        width: Input width, pixels.
        channels: Input channels, 1 (grey) or 3 (RGB).
        parameters: Trained values of all layers.
    """

    model: str
    version: int
    state: ModelState
    error: str
    is_default: bool
    classes: int
    height: int
    width: int
    channels: int
    parameters: int

    @property
    def ready(self) -> bool:
        """Whether it answers now."""
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model's catalogue. Spatial fields are height first, then width; empty where there are none.

    Attributes:
        name: Unique within the model.
        kind: conv, relu, max_pool, dense, softmax, …
        op_type: The ONNX operator, e.g. "Conv".
        inputs: Names of the layers whose outputs it takes; "input" is the image.
        shape: Of the output for one image: channels, height, width; or units.
        kernel: Kernel or pooling window, 2 numbers, pixels of the layer's input.
        stride: 2 numbers, pixels of the layer's input.
        padding: Top, left, bottom, right; pixels of the layer's input.
        dilation: 2 numbers; 1 is a dense kernel.
        groups: Of a convolution; 0 where it does not apply.
        parameters: Trained values: weights and biases.
        multiply_accumulates: For one image.
        receptive_field: Of a unit: 2 numbers, pixels of the image.
        receptive_field_stride: Between neighbouring units: 2 numbers, pixels of the image.
        receptive_field_start: Row and column of unit (0, 0)'s first pixel; negative where padding puts it outside.
    """

    name: str
    kind: str
    op_type: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    parameters: int
    multiply_accumulates: int
    receptive_field: tuple[int, ...]
    receptive_field_stride: tuple[int, ...]
    receptive_field_start: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model, in full.

    Attributes:
        model: Name in the server's repository.
        version: Positive.
        ready_versions: Every version of it that answers, ascending.
        labels: By class index.
        height: Input height, pixels.
        width: Input width, pixels.
        channels: Input channels, 1 (grey) or 3 (RGB).
        layers: Every layer, in the order of computation.
        parameters: Trained values of all layers.
        multiply_accumulates: Of all layers, for one image.
        manifest: The manifest's JSON document: labels, input, metrics, training, …
        device: Where it runs: "cpu" or "cuda:<index>".
        max_batch: Most images in one batch.
    """

    model: str
    version: int
    ready_versions: tuple[int, ...]
    labels: tuple[str, ...]
    height: int
    width: int
    channels: int
    layers: tuple[Layer, ...]
    parameters: int
    multiply_accumulates: int
    manifest: Mapping[str, Any] = field(hash=False)
    device: str
    max_batch: int

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.model(self)
