"""How networks are trained: the recipes by name, and what a recipe is."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
        colour: Most that contrast and saturation differ from 1; brightness moves by up to twice it, in standard
            deviations of the training images.
        erase: Probability that a rectangle of it, 15 … 50 % of each side, becomes the mean colour.
        mixup: Probability that a batch's images are blended in pairs (torchvision's v2.MixUp).
        cutmix: Probability that a batch's images get a rectangle of one another (v2.CutMix); with mixup at most 1.
    """

    degrees: float = 0
    shift: float = 0
    scale: tuple[float, float] = (1, 1)
    shear: float = 0
    flip: float = 0
    beyond: str = "border"
    colour: float = 0
    erase: float = 0
    mixup: float = 0
    cutmix: float = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained.

    Attributes:
        name: Its own.
        epochs: How often each image is seen, ≥ 1.
        batch_size: Images a step, over all processes, ≥ 1.
        learning_rate: The highest.
        warm_up: Fraction of the steps during which it rises.
        weight_decay: Of all weights but biases and those of normalisations.
        label_smoothing: Share of each label's probability that is spread over all classes, 0 … 1.
        augmentation: How images are changed.
        optimiser: "adamw", or "sgd" with Nesterov's momentum 0.9.
        schedule: "one_cycle" begins at 1/25 of the learning rate and ends near 0, momentum moving the other way;
            "cosine" rises in a line from 0 and falls to 0 in a half cosine.
        clip: Largest norm of the gradient, which is scaled down to it; None does not look.
        ema: Decay of a moving average of the weights, which is what is measured and published; None for none.
        calm: Last epochs in which nothing is erased, blended or exchanged.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    warm_up: float
    weight_decay: float
    label_smoothing: float
    augmentation: Augmentation
    optimiser: str = "adamw"
    schedule: str = "one_cycle"
    clip: float | None = None
    ema: float | None = None
    calm: int = 0


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Height and width in pixels; channels 1 (grey) or 3 (RGB)."""

    height: int
    width: int
    channels: int

    def __str__(self) -> str:
        return f"{self.height} × {self.width} × {self.channels}"


_DIGITS = Recipe(
    name="digits",
    epochs=18,
    batch_size=128,
    learning_rate=2e-3,
    warm_up=0.25,
    weight_decay=0.02,
    label_smoothing=0.05,
    augmentation=Augmentation(degrees=10, shift=0.07, scale=(0.9, 1.1), shear=0.1),
)
_SMALL_PHOTOS = Recipe(
    name="small_photos",
    epochs=100,
    batch_size=64,
    learning_rate=6e-3,
    warm_up=0.2,
    weight_decay=0.01,
    label_smoothing=0.1,
    augmentation=Augmentation(
        degrees=12, shift=0.1, scale=(0.85, 1.3), shear=0.1, flip=0.5, beyond="reflection", colour=0.2
    ),
    clip=5,
    ema=0.998,
)
_SMALL_PHOTOS_NORM = Recipe(
    name="small_photos_norm",
    epochs=65,
    batch_size=64,
    learning_rate=8e-3,
    warm_up=0.2,
    weight_decay=0.05,
    label_smoothing=0.1,
    augmentation=Augmentation(
        degrees=12,
        shift=0.1,
        scale=(0.85, 1.3),
        shear=0.1,
        flip=0.5,
        beyond="reflection",
        colour=0.2,
        erase=0.25,
        cutmix=0.3,
    ),
    clip=5,
    ema=0.995,
    calm=8,
)
_PHOTOS = Recipe(
    name="photos",
    epochs=90,
    batch_size=64,
    learning_rate=0.1,
    warm_up=0.05,
    weight_decay=1e-4,
    label_smoothing=0.1,
    augmentation=Augmentation(shift=0.15, scale=(1, 1.7), flip=0.5, beyond="reflection", colour=0.2),
    optimiser="sgd",
    schedule="cosine",
    clip=5,
)
_FINE_TUNE = Recipe(
    name="fine_tune",
    epochs=10,
    batch_size=32,
    learning_rate=3e-4,
    warm_up=0.1,
    weight_decay=0.02,
    label_smoothing=0.1,
    augmentation=Augmentation(shift=0.1, scale=(1, 1.4), flip=0.5, beyond="reflection"),
    schedule="cosine",
    clip=1,
    ema=0.99,
)
_PLAIN = replace(_DIGITS, name="plain", epochs=10, augmentation=Augmentation())

RECIPES = {recipe.name: recipe for recipe in (_DIGITS, _SMALL_PHOTOS, _SMALL_PHOTOS_NORM, _PHOTOS, _FINE_TUNE, _PLAIN)}
