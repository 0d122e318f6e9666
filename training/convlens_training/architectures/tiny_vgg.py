"""Tiny VGG, the network of CNN Explainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convlens_training.architectures.network import Network
from convlens_training.recipes import ImageSize

if TYPE_CHECKING:
    from torch import nn


def _layers(size: ImageSize, classes: int) -> dict[str, nn.Module]:
    from torch import nn  # takes seconds, and the command's help needs none

    layers: dict[str, nn.Module] = {}
    for block in (1, 2):
        for n in (1, 2):
            layers[f"conv_{block}_{n}"] = nn.Conv2d(10 if layers else size.channels, 10, 3)
            layers[f"relu_{block}_{n}"] = nn.ReLU()
        layers[f"max_pool_{block}"] = nn.MaxPool2d(2)
    return {**layers, "flatten": nn.Flatten(), "output": nn.Linear(10 * 13 * 13, classes)}


NETWORK = Network(
    ImageSize(64, 64, 3),
    "Tiny VGG, the network of CNN Explainer: two blocks of two convolutions and a max pooling, one dense layer",
    "small_photos",
    _layers,
)
