"""What the benchmarks' reports are made of: goals, spreads, tables, and their place in the README."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def goal(
    what: str, values: list[float], low: float | None = None, high: float | None = None, text: str = ""
) -> dict[str, Any]:
    """Whether the median of several values reaches a limit; without values it was not measured.

    Args:
        what: Is measured.
        values: One of each repeat.
        low: The least that the median may be; or
        high: the most.
        text: The limit in words, if its number does not say it.

    Returns:
        what, goal (the limit in words), median, low, high, reached; the last four None without values.
    """
    text = text or (f"≥ {low:g}" if low is not None else f"≤ {high:g}")
    if not values:
        return {"what": what, "goal": text, "median": None, "low": None, "high": None, "reached": None}
    median = statistics.median(values)
    reached = median >= low if low is not None else high is not None and median <= high
    return {
        "what": what, "goal": text, "median": median, "low": min(values), "high": max(values), "reached": reached
    }  # fmt: skip


def goal_table(goals: Sequence[dict[str, Any]]) -> str:
    """A table of goals."""
    rows = []
    for each in goals:
        measured = "not measured" if each["median"] is None else _shown(each["median"], each["low"], each["high"])
        reached = {True: "yes", False: "**no**", None: "–"}[each["reached"]]
        rows.append((each["what"], each["goal"], measured, reached))
    return table(("", "goal", "measured", "reached"), rows)


def spread(values: list[float]) -> str:
    """Median (lowest – highest)."""
    return _shown(statistics.median(values), min(values), max(values))


def _shown(median: float, low: float, high: float) -> str:
    return _number(median) if low == high else f"{_number(median)} ({_number(low)} – {_number(high)})"


def _number(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def table(titles: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def update_readme(readme: Path, script: str, text: str) -> None:
    """Puts a benchmark's report between its markers in a README.

    Args:
        readme: The file.
        script: The benchmark's file name, which its markers name.
        text: The report.

    Raises:
        ValueError: There are no such markers.
    """
    begin, end = f"<!-- bench/{script} writes from here -->", f"<!-- bench/{script} writes to here -->"
    before, found_begin, rest = readme.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{readme.name} lacks the markers {begin!r} and {end!r}")
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}")
