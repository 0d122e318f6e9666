"""TorchServe's handler for the network, for its custom handlers' module-level entry point."""

from __future__ import annotations

from typing import Any

from network import Network

_networks: list[Network] = []


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes]:
    """The scores of each request of a batch. TorchServe calls it without data once, when it loads the model."""
    if data is None:
        _networks.append(Network())
        return []
    return _networks[0].answers([bytes(request["body"]) for request in data])
