"""Prints tables for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
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
    """Prints a JSON document."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def size(numbers: Sequence[int]) -> str:
    """28×28×1."""
    return "×".join(map(str, numbers))
