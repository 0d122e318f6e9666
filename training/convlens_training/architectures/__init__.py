"""The networks that can be trained: one file each, and those of torchvision."""

from __future__ import annotations

from convlens_training.architectures import from_torchvision, lecture_cnn, tiny_vgg, tiny_vgg_bn
from convlens_training.architectures.network import Network
from convlens_training.errors import TrainingError

NETWORKS = {
    "lecture_cnn": lecture_cnn.NETWORK,
    "tiny_vgg": tiny_vgg.NETWORK,
    "tiny_vgg_bn": tiny_vgg_bn.NETWORK,
}


def find(name: str) -> Network:
    """A network of `NETWORKS`, or of torchvision, with or without "torchvision:" before its name.

    Raises:
        TrainingError: There is none of that name.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    plain = name.removeprefix(from_torchvision.PREFIX)
    if plain not in from_torchvision.names():
        raise TrainingError(
            f"there is no network {name!r}: choose from {', '.join(NETWORKS)}, or a classification network of "
            "torchvision by its name, e.g. resnet18"
        )
    return from_torchvision.network(plain)
