"""What the benchmarks' commands have in common: to say how far they are, and to measure, store and show a result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from answers import AnswerError
from h2load import LoadError
from machine import QUIET
from processes import ProcessError
from tables import update_readme

_HERE = Path(__file__).parent


def new_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all have.

    Args:
        name: Of the benchmark's file, without its ending.
        text: Its docstring.
    """
    result = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = _HERE / "results" / f"{name}.json"
    result.add_argument("--output", type=Path, default=output, help="where results go")
    result.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, show a stored result")
    result.add_argument("--update-readme", action="store_true", help="put the table into bench/README.md")
    return result


def finish(
    name: str,
    arguments: argparse.Namespace,
    measure: Callable[[], dict[str, Any]],
    render: Callable[[dict[str, Any]], str],
    indent: int | None = 1,
) -> int:
    """Measures and stores, or reads what was stored; shows it, and returns the exit code.

    Args:
        name: Of the benchmark's file, without its ending.
        arguments: Of `new_parser`.
        measure: Gives the result.
        render: Makes Markdown of it.
        indent: Of the stored file; None for a result of thousands of numbers.
    """
    if arguments.table:
        result = json.loads(arguments.table.read_text())
    else:
        try:
            result = measure()
        except (LoadError, AnswerError, ProcessError) as error:
            say(f"bench/{name}.py: {error}")
            return 1
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=indent, ensure_ascii=False) + "\n")
    text = render(result)
    print(text)
    if arguments.update_readme:
        update_readme(_HERE / "README.md", f"{name}.py", text)
    return 0


def say(text: str) -> None:
    """Tells what is going on, beside the result."""
    print(text, file=sys.stderr, flush=True)


def say_if_busy(machine: dict[str, Any]) -> None:
    """Tells when the machine had other work before."""
    if machine["load_before"] > QUIET:
        say(f"this machine is busy (load average {machine['load_before']:.1f}): the figures mean little")
