"""Any classification network of torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convlens_training.architectures.network import BODY, Network
from convlens_training.recipes import ImageSize

if TYPE_CHECKING:
    from torch import nn

PREFIX = "torchvision:"
# Mean and deviation that torchvision's weights were trained with.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SIZES = {"inception_v3": 299}


def names() -> list[str]:
    """The names of torchvision's classification networks."""
    from torchvision import models

    return list(models.list_models(module=models))


def network(name: str) -> Network:
    """One of `names`, without weights."""
    side = _SIZES.get(name, 224)

    def layers(size: ImageSize, classes: int) -> dict[str, nn.Module]:
        from torchvision import models

        arguments: dict[str, Any] = {"weights": None, "num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            # Their second outputs, for training only, do not fit a loop of one loss; without being told, they warn.
            arguments |= {"aux_logits": False, "init_weights": True}
        if name.startswith("vit_"):
            arguments["image_size"] = size.height
        return {BODY: models.get_model(name, **arguments)}

    return Network(
        ImageSize(side, side, 3),
        f"{name} of torchvision",
        "photos",
        layers,
        any_size=True,
        tuned="fine_tune",
        normalisation=_IMAGENET,
    )
