"""The lecture's network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convlens_training.architectures.network import Network
from convlens_training.recipes import ImageSize

if TYPE_CHECKING:
    from torch import nn


def _layers(size: ImageSize, classes: int) -> dict[str, nn.Module]:
    from torch import nn  # takes seconds, and the command's help needs none

    return {
        "conv_1": nn.Conv2d(size.channels, 32, 3),
        "relu_1": nn.ReLU(),
        "conv_2": nn.Conv2d(32, 64, 3),
        "relu_2": nn.ReLU(),
        "max_pool_1": nn.MaxPool2d(2),
        "dropout_1": nn.Dropout(0.25),
        "flatten": nn.Flatten(),
        "dense_1": nn.Linear(64 * 12 * 12, 128),
        "relu_3": nn.ReLU(),
        "dropout_2": nn.Dropout(0.5),
        "output": nn.Linear(128, classes),
    }


NETWORK = Network(
    ImageSize(28, 28, 1),
    "The lecture's network: two convolutions, one max pooling, two dense layers",
    "digits",
    _layers,
)
