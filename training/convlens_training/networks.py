"""The networks, as torch modules from uint8 images to scores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from convlens.manifest import ImageInput


class Preprocess(nn.Module):
    """Turns pixels into a network's values, as the manifest says.

    (p / 255 × (high − low) + low − mean) / std is one factor and one term for each channel, computed in float64.

    Args:
        image: The image and its normalisation.
    """

    factor: torch.Tensor
    term: torch.Tensor

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        low, high = image.value_range
        std = np.array(image.std or [1.0] * image.channels)
        mean = np.array(image.mean or [0.0] * image.channels)
        for name, values in (("factor", (high - low) / 255 / std), ("term", (low - mean) / std)):
            shaped = torch.from_numpy(values.reshape(-1, 1, 1).astype(np.float32))
            self.register_buffer(name, shaped, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 N × height × width × channels to float32 N × channels × height × width."""
        return images.permute(0, 3, 1, 2).float() * self.factor + self.term


def build(name: str, image: ImageInput, classes: int) -> nn.Sequential:
    """A network with fresh weights, from torch's random numbers.

    Its first module, `preprocess`, takes uint8 N × height × width × channels; its last, `softmax`, gives float32
    N × classes. The modules between them have the names that the layers have in the exported file.

    Args:
        name: One of recipes.NETWORKS.
        image: What it takes; of the size that recipes.NETWORKS says.
        classes: Number of classes, ≥ 2.
    """
    layers = OrderedDict[str, nn.Module](preprocess=Preprocess(image))
    layers.update(_BODIES[name](image.channels, classes))
    layers["softmax"] = nn.Softmax(dim=1)
    return nn.Sequential(layers)


def without_ends(network: nn.Sequential) -> nn.Sequential:
    """The same modules, from the network's values (float32 N × channels × height × width) to logits."""
    return network[1:-1]


def _lecture_cnn(channels: int, classes: int) -> dict[str, nn.Module]:
    return {
        "conv_1": nn.Conv2d(channels, 32, 3),
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


def _tiny_vgg(channels: int, classes: int) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    for block in (1, 2):
        for n in (1, 2):
            layers[f"conv_{block}_{n}"] = nn.Conv2d(10 if layers else channels, 10, 3)
            layers[f"relu_{block}_{n}"] = nn.ReLU()
        layers[f"max_pool_{block}"] = nn.MaxPool2d(2)
    return {**layers, "flatten": nn.Flatten(), "output": nn.Linear(10 * 13 * 13, classes)}


_BODIES: dict[str, Callable[[int, int], dict[str, nn.Module]]] = {"lecture_cnn": _lecture_cnn, "tiny_vgg": _tiny_vgg}
