"""Any classification network of torchvision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from convlens_training.architectures.network import BODY, Network
from convlens_training.recipes import ImageSize

if TYPE_CHECKING:
    from torch import nn

PREFIX = "torchvision:"
# Mean and deviation that torchvision's weights were trained with.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Their weights were trained with another; torchvision converts inside the network, if it loads them itself.
_CONVERTED = {"googlenet", "inception_v3"}
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SIZES = {"inception_v3": 299}
# What its files of weights call some tensors, and what its networks call them by now.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


def names() -> list[str]:
    """The names of torchvision's classification networks."""
    from torchvision import models

    return list(models.list_models(module=models))


def current_name(key: str) -> str:
    """What a tensor of a file of torchvision's weights, which may be of an old release, is called by now."""
    for pattern, new in _RENAMED:
        key = pattern.sub(new, key)
    return key


def network(name: str) -> Network:
    """One of `names`, without weights."""
    side = _SIZES.get(name, 224)

    def layers(size: ImageSize, classes: int) -> dict[str, nn.Module]:
        from torchvision import models

        arguments: dict[str, Any] = {"weights": None, "num_classes": classes}
        if name in _CONVERTED:
            # Their second outputs, for training only, do not fit a loop of one loss; without being told, they warn.
            arguments |= {"aux_logits": False, "init_weights": True}
        if name.startswith("vit_"):
            arguments["image_size"] = size.height
        if name.startswith("maxvit_"):
            arguments["input_size"] = (size.height, size.width)
        return {BODY: models.get_model(name, **arguments)}

    return Network(
        ImageSize(side, side, 3),
        f"{name} of torchvision",
        "photos",
        layers,
        any_size=True,
        tuned="fine_tune",
        normalisation=_HALVES if name in _CONVERTED else _IMAGENET,
    )
