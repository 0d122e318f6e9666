"""Groups of layers that can be folded into one box: residual blocks, branches that meet again, and stages of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from convlens_server.catalogue import Layer
from convlens_server.naming import IMAGE
from convlens_server.receptive_field import ELEMENTWISE

# Fewer are drawn as easily as a box; an activation written out in basic operators has no trained layer.
_FEWEST_LAYERS = 4
_FEWEST_TRAINED = 2
# What takes more than this part of a network is no part of it.
_LARGEST_PART = 0.9
# Layers at either end of a group of one name that may be left out to give it one way in and one way out: of DenseNet's
# dense layers the concatenation in front.
_MOST_TRIMMED = 2


@dataclass(frozen=True, slots=True)
class Block:
    """A group of layers with one way in and one way out: all that it takes is one layer's, and so is all it gives.

    Attributes:
        name: Unique among the blocks: the longest common beginning of its layers' names, else block_<n>.
        layers: Names, in the order of computation.
        parent: Name of the smallest block that it stands in; empty if in none.
    """

    name: str
    layers: tuple[str, ...]
    parent: str


def find_blocks(layers: Sequence[Layer]) -> list[Block]:
    """The blocks of a network, in the order of their first layers, outer ones before those inside; a chain has none.

    First what stands under one name, as layer1.0 of layer1.0.conv1 …; a chain only beside a block of branches, as the
    inverted residuals without a shortcut. Then whatever lies between a layer that several take and the one where all
    ways from it meet, with the activation behind that.
    """
    if all(len(layer.inputs) == 1 for layer in layers):
        # Ways that part but never meet have a layer without use.
        return []
    finder = _Finder(layers)
    found: list[tuple[str, ...]] = []
    for group in [*finder.named(), *finder.structural()]:
        members = set(group)
        if all(_stand_together(members, set(other)) for other in found):
            found.append(group)
    found.sort(key=lambda group: (finder.index[group[0]], -len(group)))
    return _with_names(found)


def _stand_together(group: set[str], other: set[str]) -> bool:
    """Whether two groups are apart, or one in the other with more than one layer beside it."""
    return group.isdisjoint(other) or ((group < other or other < group) and abs(len(group) - len(other)) > 1)


def _with_names(groups: Sequence[tuple[str, ...]]) -> list[Block]:
    blocks: list[Block] = []
    names: set[str] = set()
    for group in groups:
        name = _common_beginning(group)
        if not name or name in names:
            name = next(made for n in range(1, len(groups) + 1) if (made := f"block_{n}") not in names)
        names.add(name)
        around = [block for block in blocks if set(group) < set(block.layers)]
        blocks.append(Block(name, group, min(around, key=lambda block: len(block.layers)).name if around else ""))
    return blocks


def _common_beginning(names: Iterable[str]) -> str:
    """The longest beginning that names share, whole words of it, as of conv2_block1_add and conv2_block1_out."""
    first, *others = [re.split(r"([./_])", name) for name in names]
    common = 0
    while all(words[: common + 1] == first[: common + 1] for words in others) and common + 1 < len(first):
        common += 1
    return "".join(first[:common]).rstrip("./_")


class _Finder:
    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.index = {layer.name: n for n, layer in enumerate(layers)}
        self.consumers: dict[str, list[str]] = {name: [] for name in (IMAGE, *self.layers)}
        for layer in layers:
            for source in layer.inputs:
                self.consumers[source].append(layer.name)

    def named(self) -> list[tuple[str, ...]]:
        """Groups of layers whose names begin alike, large ones first."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.layers:
            for end in re.finditer(r"[./]", name):
                groups[name[: end.start()]].append(name)
        whole = {prefix: trimmed for prefix, group in groups.items() if (trimmed := self._trimmed(group))}
        branching = {prefix for prefix in whole if not self._is_chain(groups[prefix])}
        parents = {_parent(prefix) for prefix in branching}
        kept = [group for prefix, group in whole.items() if prefix in branching or _parent(prefix) in parents]
        # Of one group under two names either will do; what begins at the image and has blocks in it is the network.
        kept = list(dict.fromkeys(kept))
        return sorted((group for group in kept if not self._is_trunk(group, kept)), key=len, reverse=True)

    def structural(self) -> list[tuple[str, ...]]:
        """Groups between a layer that several take and where all ways from it meet, large ones first."""
        groups = []
        meets = self._meeting_points()
        for fork, consumers in self.consumers.items():
            end = meets.get(fork)
            if len(consumers) < 2 or end is None:
                continue
            members = {end}
            waiting = list(consumers)
            while waiting:
                name = waiting.pop()
                if name not in members:
                    members.add(name)
                    waiting.extend(self.consumers[name])
            while (behind := self._activation_behind(end)) is not None:
                members.add(behind)
                end = behind
            group = tuple(sorted(members, key=self.index.__getitem__))
            if self._is_block(group):
                groups.append(group)
        return sorted(groups, key=len, reverse=True)

    def _trimmed(self, group: list[str]) -> tuple[str, ...]:
        """The group, or what is left of it that is a block; empty if nothing is."""
        for total in range(_MOST_TRIMMED + 1):
            for front in range(total, -1, -1):
                part = tuple(group[front : len(group) - (total - front)])
                if self._is_block(part):
                    return part
        return ()

    def _is_block(self, group: Sequence[str]) -> bool:
        if not _FEWEST_LAYERS <= len(group) <= _LARGEST_PART * len(self.layers):
            return False
        if sum(self.layers[name].parameters > 0 for name in group) < _FEWEST_TRAINED:
            return False
        members = set(group)
        sources = {source for name in group for source in self.layers[name].inputs if source not in members}
        exits = [name for name in group if not self.consumers[name] or not members.issuperset(self.consumers[name])]
        return len(sources) == len(exits) == 1

    def _is_chain(self, group: Sequence[str]) -> bool:
        return all(len(self.layers[name].inputs) == 1 for name in group)

    def _is_trunk(self, group: tuple[str, ...], groups: Collection[tuple[str, ...]]) -> bool:
        members = set(group)
        return IMAGE in self.layers[group[0]].inputs and any(set(other) < members for other in groups)

    def _activation_behind(self, name: str) -> str | None:
        """What alone takes a layer and changes each of its values by itself, without trained values."""
        if len(self.consumers[name]) != 1:
            return None
        layer = self.layers[self.consumers[name][0]]
        alone = len(layer.inputs) == 1 and layer.parameters == 0 and layer.op_type in ELEMENTWISE
        return layer.name if alone else None

    def _meeting_points(self) -> Mapping[str, str]:
        """By a layer, the first that all ways from it go through: its immediate post-dominator.

        By K. Cooper, T. Harvey and K. Kennedy, "A Simple, Fast Dominance Algorithm" (2001); without loops one pass is
        enough.
        """
        meets: dict[str, str] = {}
        depth: dict[str, int] = {}

        for name in (*reversed(self.layers), IMAGE):
            meeting: str | None = None
            for n, consumer in enumerate(self.consumers[name]):
                meeting = consumer if n == 0 else _first_common(meeting, consumer, meets, depth)
            depth[name] = 0
            if meeting is not None:
                meets[name] = meeting
                depth[name] = depth[meeting] + 1
        return meets


def _first_common(a: str | None, b: str | None, meets: Mapping[str, str], depth: Mapping[str, int]) -> str | None:
    while a != b:
        if a is None or b is None:
            return None
        if depth[a] >= depth[b]:
            a = meets.get(a)
        else:
            b = meets.get(b)
    return a


def _parent(prefix: str) -> str:
    return re.sub(r"(^|[./])[^./]*$", "", prefix)
