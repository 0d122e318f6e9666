"""Which layer an attribution looks at, and where in the image its maps belong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from convlens_server.catalogue import Catalogue, Layer
from convlens_server.errors import NotApplicable

# What gathers positions says less of where than what it gathers.
_POOLING = frozenset({"max_pool", "average_pool", "lp_pool"})


def has_positions(layer: Layer) -> bool:
    """Whether a layer's output has channels of more than one position."""
    return len(layer.shape) == 3 and layer.shape[1] * layer.shape[2] > 1


def default_layer(catalogue: Catalogue) -> Layer:
    """The layer that is taken where none is asked for.

    Behind the last convolution with more than one position the last layer with as many rows and columns that pools
    nothing: in a chain the convolution's activation, in a residual network the last block's, in a dense one what all
    its convolutions have gathered.

    Raises:
        NotApplicable: No convolution has more than one position.
    """
    layers = catalogue.layers
    last = max((n for n, each in enumerate(layers) if each.kind == "conv" and has_positions(each)), default=None)
    if last is None:
        raise NotApplicable(
            "the model has no convolution with more than one position, whose maps could be used: take occlusion, which "
            "needs none",
            field="layer",
        )
    size = layers[last].shape[1:]
    return [
        each for each in layers[last:] if has_positions(each) and each.shape[1:] == size and each.kind not in _POOLING
    ][-1]


class Placing:
    """Spreads a layer's maps over the image, bilinearly.

    A unit's value belongs to the centre of its receptive field: without padding the first unit's is well inside the
    image. Beyond the outermost centres the outermost values go on. Where all units see the whole image (behind a
    squeeze-and-excitation block, for one) they are taken to divide it evenly.

    Args:
        layer: With positions.
        size: Rows and columns of the image.
    """

    def __init__(self, layer: Layer, size: tuple[int, int]) -> None:
        self._rows, self._columns = (
            _weights(
                size[n],
                layer.shape[1 + n],
                layer.receptive_field_start[n] + (layer.receptive_field[n] - 1) / 2,
                layer.receptive_field_stride[n],
            )
            for n in (0, 1)
        )

    def spread(self, maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Maps, … × the layer's rows × its columns, as … × the image's rows × its columns."""
        return np.asarray(self._rows @ maps @ self._columns.T, np.float32)


def _weights(size: int, count: int, centre: float, stride: int) -> npt.NDArray[np.float32]:
    """What each of `count` units gives to each of `size` pixels: size × count, each row's sum 1."""
    pixels = np.arange(size)
    place = np.clip((pixels - centre) / stride if stride else (pixels + 0.5) * count / size - 0.5, 0, count - 1)
    low = np.minimum(place.astype(np.int64), max(count - 2, 0))
    share = (place - low).astype(np.float32)
    weights = np.zeros((size, count), np.float32)
    weights[pixels, low] = 1 - share
    weights[pixels, np.minimum(low + 1, count - 1)] += share
    return weights
