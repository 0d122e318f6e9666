"""Tiny VGG's idea, wider and with batch normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convlens_training.architectures.network import Network
from convlens_training.recipes import ImageSize

if TYPE_CHECKING:
    from torch import nn

# Channels of each convolution, block by block; each block but the last ends in a max pooling.
_BLOCKS = ((32, 32), (64, 64), (96, 96), (104,))


def _layers(size: ImageSize, classes: int) -> dict[str, nn.Module]:
    from torch import nn  # takes seconds, and the command's help needs none

    layers: dict[str, nn.Module] = {}
    channels = size.channels
    for block, widths in enumerate(_BLOCKS, 1):
        for n, width in enumerate(widths, 1):
            # The first convolution halves the image, which saves three quarters of the arithmetic of its block.
            convolution = nn.Conv2d(channels, width, 3, 1 if layers else 2, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers[f"conv_{block}_{n}"] = convolution
            layers[f"norm_{block}_{n}"] = nn.BatchNorm2d(width)
            layers[f"relu_{block}_{n}"] = nn.ReLU()
            channels = width
        if block < len(_BLOCKS):
            layers[f"max_pool_{block}"] = nn.MaxPool2d(2)
    layers["average_pool"] = nn.AdaptiveAvgPool2d(1)
    return {**layers, "flatten": nn.Flatten(), "output": nn.Linear(channels, classes)}


NETWORK = Network(
    ImageSize(64, 64, 3),
    "Tiny VGG's idea, wider and with batch normalisation: seven convolutions in four blocks, one dense layer",
    "small_photos_norm",
    _layers,
    any_size=True,
)
