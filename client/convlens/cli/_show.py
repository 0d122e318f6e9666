"""Prints tables for people and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Collection[str] = ()) -> None:
    """Prints aligned columns.

    Args:
        header: Titles.
        rows: Their cells; None is an empty one.
        right: The titles of right-aligned columns.
    """
    lines = [list(header), *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if title in right else cell.ljust(width)
            for cell, width, title in zip(line, widths, header, strict=True)
        ]
        print("  ".join(cells).rstrip())


def as_json(value: Any) -> None:
    """Prints a JSON document; numbers that are not finite, which JSON does not have, as null."""
    print(json.dumps(_finite(value), ensure_ascii=False, indent=2, allow_nan=False))


def size(numbers: Sequence[int]) -> str:
    """28×28×1."""
    return "×".join(map(str, numbers))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
