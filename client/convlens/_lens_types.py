"""What the clients give back of a network's inside: its graph, its kernels, attributions, comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from convlens._explanation import Region
from convlens._types import Layer, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How an attribution is made: see `Client.attribute`.
AttributionMethod: TypeAlias = Literal["occlusion", "score_cam", "eigen_cam", "grad_cam"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to try a model with.

    Attributes:
        name: Unique among the model's samples.
        file: JPEG, PNG or WebP; can be given wherever an image is taken.
    """

    name: str
    file: bytes = field(repr=False)

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.sample(self)


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """The trained values of one layer.

    Attributes:
        layer: The layer's name.
        kind: conv, dense, batch_norm, …
        weights: float32; output channels × input channels of one group × rows × columns; for a dense layer units ×
            input units; for a normalisation channels.
        bias: float32, one for each output channel; None where the layer has none.
        channels: The network's index of each output channel of `weights`.
        groups: Of a convolution: output channel c takes the input channels of group c ÷ (output channels ÷ groups);
            0 where it does not apply.
        model: Name of the model that answered.
        version: Version that answered, positive.
    """

    layer: str
    kind: str
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    channels: tuple[int, ...]
    groups: int
    model: str
    version: int

    def plot(self, figure: Figure | None = None) -> Figure:
        """Draws them: a row an output channel, at most 16; brown is negative, green positive.

        Args:
            figure: What to draw into, e.g. `matplotlib.pyplot.figure()`; None makes a new one.

        Raises:
            ModuleNotFoundError: matplotlib is missing; the extra `plot` has it.
        """
        from convlens import _plots

        return _plots.kernels(self, figure)

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.kernels(self)


@dataclass(frozen=True, slots=True)
class GraphLayer:
    """One layer of a graph.

    Attributes:
        layer: As in the catalogue.
        column: Where it stands, from the left: the longest way from the input, which stands in column 0.
        lane: 0 is the main way; no two layers of a column share one.
        units: Numbers that its output has for one image.
        input_units: Numbers that it takes for one image.
        connections: Pairs of an input unit and a unit that depends on it, padding not counted.
        dense_connections: What a fully connected layer between the same units would have: input_units × units.
    """

    layer: Layer
    column: int
    lane: int
    units: int
    input_units: int
    connections: int
    dense_connections: int


@dataclass(frozen=True, slots=True)
class GraphBlock:
    """Layers that can be folded into one box, with one way in and one way out.

    Attributes:
        name: Unique among the blocks.
        layers: Names, in the order of computation.
        parent: Name of the block that it stands in; empty if in none.
    """

    name: str
    layers: tuple[str, ...]
    parent: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A network as a graph to draw.

    Attributes:
        layers: In the order of computation.
        edges: Names of the layer whose output goes, or "input", and of the one that takes it; by target.
        blocks: By their first layers, outer ones before those in them; a plain chain has none.
        columns: That drawing needs, the input's included.
        model: Name of the model that answered.
        version: Version that answered, positive.
    """

    layers: tuple[GraphLayer, ...]
    edges: tuple[tuple[str, str], ...]
    blocks: tuple[GraphBlock, ...]
    columns: int
    model: str
    version: int

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.graph(self)


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Where in an image the answer comes from.

    Attributes:
        map: float32, height × width of the model's input. For occlusion the fall of the score, −1 … 1; for the others
            ≥ 0, the largest 1 unless all are 0.
        overlay: uint8, height × width × 4: the image with the map laid over it, RGBA; None unless asked for.
        method: How it was made.
        layer: The layer whose maps were used; empty for occlusion.
        prediction: The class that it is about, with its score.
        images: Images that the network was run on for it.
        model: Name of the model that answered.
        version: Version that answered, positive.
        compute_ms: Time it took, milliseconds.
    """

    map: npt.NDArray[np.float32]
    overlay: npt.NDArray[np.uint8] | None
    method: str
    layer: str
    prediction: Prediction
    images: int
    model: str
    version: int
    compute_ms: float

    def plot(self, figure: Figure | None = None) -> Figure:
        """Draws the map with its scale, and the overlay beside it if there is one. Arguments as in `Kernels.plot`."""
        from convlens import _plots

        return _plots.attribution(self, figure)

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.attribution(self)


@dataclass(frozen=True, slots=True)
class MaximizingImage:
    """An image and where it activates a channel most.

    Attributes:
        file: Its path within the dataset, with "/" between folders.
        activation: The channel's largest in this image.
        row: Of the unit that has it; 0 for a layer without positions.
        column: Of that unit.
        receptive_field: What that unit sees of the image.
        image: The image as the model takes it, as PNG; None unless asked for.
    """

    file: str
    activation: float
    row: int
    column: int
    receptive_field: Region
    image: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class MaximizingImages:
    """The images that activate one channel most.

    Attributes:
        layer: The layer's name.
        channel: The channel (or unit).
        images: Highest activation first; fewer than asked for where the dataset has fewer.
        dataset: Name of the dataset.
        model: Name of the model that answered.
        version: Version that answered, positive.
    """

    layer: str
    channel: int
    images: tuple[MaximizingImage, ...]
    dataset: str
    model: str
    version: int

    def plot(self, figure: Figure | None = None) -> Figure:
        """Draws the images, if they were asked for, each with its receptive field. Arguments as in `Kernels.plot`."""
        from convlens import _plots

        return _plots.maximizing(self, figure)

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.maximizing(self)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """One layer of a comparison of N pairs of images.

    Attributes:
        layer: The layer's name.
        kind: conv, relu, max_pool, dense, softmax, …
        cosine: float32, N: of the angle between the two sides' activations, −1 … 1; 0 if one is all 0.
        relative_difference: float32, N: Euclidean distance of the two sides divided by the first's norm; 0 if they are
            equal.
        cka: Linear centred kernel alignment over the images, 0 … 1; None for a single pair.
        difference: float32: the second side minus the first, N × channels × height × width, or N × units; without
            the first dimension where a single image was given. None unless asked for.
        models: Name and version that answered: of the first side, then of the second.
    """

    layer: str
    kind: str
    cosine: npt.NDArray[np.float32]
    relative_difference: npt.NDArray[np.float32]
    cka: float | None
    difference: npt.NDArray[np.float32] | None
    models: tuple[tuple[str, int], tuple[str, int]]
