"""Where the layers of a graph stand when it is drawn: columns from the left, lanes beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from convlens_server.naming import IMAGE


def columns(inputs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The column of each layer: the number of edges of the longest way from the input, which stands in column 0.

    Args:
        inputs: By the layers' names, in the order of computation, what each takes.
    """
    placed = {IMAGE: 0}
    for name, sources in inputs.items():
        placed[name] = 1 + max((placed[source] for source in sources), default=0)
    return placed


def lanes(inputs: Mapping[str, Sequence[str]], placed: Mapping[str, int]) -> dict[str, int]:
    """The lane of each layer: 0 for the longest way to the last layer, others for what stands beside it.

    A branch stays in one lane, the first that is free in all columns from its first layer to its last, so that no two
    layers of a column share one.

    Args:
        inputs: As for `columns`.
        placed: The layers' columns.
    """
    main = set(_main_way(inputs, placed))
    given = dict.fromkeys(main, 0)
    occupied: dict[int, set[int]] = {}
    for branch in _branches(inputs, main):
        span = range(placed[branch[0]], placed[branch[-1]] + 1)
        lane = next(n for n in range(1, len(inputs) + 2) if occupied.get(n, set()).isdisjoint(span))
        occupied.setdefault(lane, set()).update(span)
        given.update(dict.fromkeys(branch, lane))
    return given


def _main_way(inputs: Mapping[str, Sequence[str]], placed: Mapping[str, int]) -> Iterable[str]:
    """From the last layer back, always to the input that is farthest from the image."""
    name = [IMAGE, *inputs][-1]
    while name != IMAGE:
        yield name
        name = max(inputs[name], key=lambda source: placed[source], default=IMAGE)


def _branches(inputs: Mapping[str, Sequence[str]], main: set[str]) -> list[list[str]]:
    """The layers beside the main way, in runs of which each layer takes what the one before it gives."""
    branches: list[list[str]] = []
    ends: dict[str, list[str]] = {}
    for name, sources in inputs.items():
        if name in main:
            continue
        branch = next((ends.pop(source) for source in sources if source in ends), None)
        if branch is None:
            branch = []
            branches.append(branch)
        branch.append(name)
        ends[name] = branch
    return branches
