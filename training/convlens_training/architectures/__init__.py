"""The networks that can be trained: one file each, and those of torchvision."""

from __future__ import annotations

import importlib
import pkgutil

from convlens_training.architectures import from_torchvision
from convlens_training.architectures.network import Network
from convlens_training.errors import TrainingError


def _networks() -> dict[str, Network]:
    modules = {
        entry.name: importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)
    }
    return {name: module.NETWORK for name, module in modules.items() if hasattr(module, "NETWORK")}


# By name: each file of this folder that has a NETWORK is one.
NETWORKS = _networks()


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
