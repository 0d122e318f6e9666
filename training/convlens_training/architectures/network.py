"""What can be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convlens_training.recipes import ImageSize

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Network:
    """An architecture.

    Attributes:
        size: Of the image that it takes.
        description: One line for people.
        recipe: How it is trained unless flags say otherwise, one of recipes.RECIPES.
        layers: Makes its modules with fresh weights, by name and in order, from values of the size to logits, for a
            number of classes. A network whose modules do not simply follow each other is one module, `BODY`.
        any_size: Whether it takes images of other heights and widths too.
        tuned: How it is trained where it begins with weights from a file; None, as otherwise.
        normalisation: Mean and deviation of each channel that such weights expect; None for those of the images.
    """

    size: ImageSize
    description: str
    recipe: str
    layers: Callable[[ImageSize, int], dict[str, nn.Module]]
    any_size: bool = False
    tuned: str | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


# The one module of a network that is no plain sequence; its name does not appear in the export.
BODY = "body"
