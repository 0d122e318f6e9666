"""Readable, unique names for layers, the same at every load of a file."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from convlens_server.normalise import TORCH_SCOPES

IMAGE = "input"

# What torch's exporter calls nodes that it finds no better name for; and mere numbers.
_UNREADABLE = re.compile(r"node_.*|n\d+(_\d+)?|\d+|", re.ASCII)


@dataclass(frozen=True, slots=True)
class Unnamed:
    """A layer that wants a name.

    Attributes:
        node: Its node; of several the one with the weights.
        kind: Its kind.
        weight: Name of its weights' tensor; empty if it has none.
        part: Which of its node's outputs it is, where the node has several.
    """

    node: onnx.NodeProto
    kind: str
    weight: str = ""
    part: int | None = None


def layer_names(layers: Sequence[Unnamed]) -> list[str]:
    """Names for the layers of a network, in the order given.

    A readable node name is kept. For nodes exported by torch the name is that of their module, e.g. layer1.0.conv1,
    from the exporter's metadata (`dynamo=True`) or from the node's path /layer1/layer1.0/conv1/Conv (`dynamo=False`);
    where a module is more than one kind of layer or holds other modules, the kind stands behind it. All others are
    <kind>_<n>, counting from 1. A name that is taken gets a number behind it; "input" is the image's.
    """
    paths = [_module(layer) for layer in layers]
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    holders: set[str] = set()
    for layer, path in zip(layers, paths, strict=True):
        if path is not None:
            kinds[path].add(layer.kind)
            parents = path.split(".")
            holders.update(".".join(parents[:n]) for n in range(1, len(parents)))
    counts: Counter[str] = Counter()
    wanted = []
    for layer, path in zip(layers, paths, strict=True):
        if path is not None:
            alone = path and len(kinds[path]) == 1 and path not in holders
            name = path if alone else f"{path}.{layer.kind}".lstrip(".")
        elif _UNREADABLE.fullmatch(layer.node.name):
            counts[layer.kind] += layer.part in (None, 0)
            name = f"{layer.kind}_{counts[layer.kind]}"
        else:
            name = layer.node.name
        wanted.append(name if layer.part is None else f"{name}.{layer.part}")
    return _unique(wanted)


def _unique(wanted: list[str]) -> list[str]:
    taken = {IMAGE}
    names = []
    originals = set(wanted)
    repeats: Counter[str] = Counter()
    for name in wanted:
        unique = name
        while unique in taken or (unique != name and unique in originals):
            repeats[name] += 1
            unique = f"{name}_{repeats[name]}"
        taken.add(unique)
        names.append(unique)
    return names


def _module(layer: Unnamed) -> str | None:
    """The path of the torch module that a node comes from, "" for the network itself; None if it is not from torch."""
    node = layer.node
    scopes = next((entry.value for entry in node.metadata_props if entry.key == TORCH_SCOPES), None)
    if scopes is not None and _UNREADABLE.fullmatch(node.name):
        return _from_scopes(scopes, layer.weight)
    if node.name.startswith("/"):
        return _from_path(node.name.split("/")[1:-1])
    return None


def _from_scopes(scopes: str, weight: str) -> str | None:
    """E.g. ['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']: the modules from outside in, then the call."""
    try:
        modules = [str(scope) for scope in ast.literal_eval(scopes)][:-1]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    module = modules[-1] if modules else ""
    if module.startswith("_"):
        return ""
    # A batch normalisation that was folded into the convolution before it leaves its own module there; the weights
    # still have the convolution's name.
    owner, dot, leaf = weight.rpartition(".")
    if dot and leaf == "weight" and owner.rpartition(".")[0] == module.rpartition(".")[0]:
        return owner
    return module


def _from_path(parts: Sequence[str]) -> str:
    """E.g. layer1, layer1.0, conv1: a part that goes on from the one before it replaces that one."""
    kept: list[str] = []
    for part in parts:
        if kept and part.startswith(kept[-1] + "."):
            kept[-1] = part
        else:
            kept.append(part)
    return ".".join(kept)
