"""The networks by name: the image each takes, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How each training image is changed at random, anew in each epoch.

    Attributes:
        degrees: Most that it is turned, either way.
        shift: Most that it is moved along each axis, as a fraction of the image's size.
        scale: Least and most factor by which it is enlarged.
        shear: Most shear along x, in pixels a pixel.
        flip: Probability that left and right are exchanged.
        beyond: What is seen beyond the image's edge: "border" goes on with its outermost pixels, "reflection" mirrors.
    """

    degrees: float
    shift: float
    scale: tuple[float, float]
    shear: float
    flip: float
    beyond: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained: AdamW, with a learning rate that rises and falls once.

    Attributes:
        epochs: How often each image is seen, ≥ 1.
        batch_size: Images a step, ≥ 1.
        learning_rate: The highest; it begins at 1/25 of it, and ends near 0.
        warm_up: Fraction of the steps during which it rises.
        weight_decay: Of AdamW.
        label_smoothing: Share of each label's probability that is spread over all classes, 0 … 1.
        augmentation: How images are changed.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warm_up: float
    weight_decay: float
    label_smoothing: float
    augmentation: Augmentation


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Height and width in pixels; channels 1 (grey) or 3 (RGB)."""

    height: int
    width: int
    channels: int

    def __str__(self) -> str:
        return f"{self.height} × {self.width} × {self.channels}"


@dataclass(frozen=True, slots=True)
class Subject:
    """What can be trained.

    Attributes:
        size: Of the image that the network takes.
        description: One line for people.
        recipe: How it is trained unless flags say otherwise.
    """

    size: ImageSize
    description: str
    recipe: Recipe


NETWORKS = {
    "lecture_cnn": Subject(
        ImageSize(28, 28, 1),
        "The lecture's network: two convolutions, one max pooling, two dense layers",
        Recipe(
            epochs=18,
            batch_size=128,
            learning_rate=2e-3,
            warm_up=0.25,
            weight_decay=0.02,
            label_smoothing=0.05,
            augmentation=Augmentation(degrees=10, shift=0.07, scale=(0.9, 1.1), shear=0.1, flip=0, beyond="border"),
        ),
    ),
    "tiny_vgg": Subject(
        ImageSize(64, 64, 3),
        "Tiny VGG, the network of CNN Explainer: two blocks of two convolutions and a max pooling, one dense layer",
        Recipe(
            epochs=70,
            batch_size=64,
            learning_rate=6e-3,
            warm_up=0.2,
            weight_decay=0.01,
            label_smoothing=0.1,
            augmentation=Augmentation(
                degrees=10, shift=0.1, scale=(0.85, 1.2), shear=0.1, flip=0.5, beyond="reflection"
            ),
        ),
    ),
}
