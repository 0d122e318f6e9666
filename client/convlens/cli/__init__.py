"""The `convlens` command. It needs only the SDK; what serves or trains calls its package, if it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence

from convlens._errors import Error
from convlens.cli._parser import parser

_OURS = {"convlens", "convlens_server", "convlens_training"}
# Command: the module whose main(argv) takes its arguments, and the extras that it needs.
_DELEGATES = {
    "serve": ("convlens_server.launch", "server"),
    "train": ("convlens_training.cli", "server,training"),
    "runs": ("convlens_training.runs_cli", "training"),
    "evaluate": ("convlens_training.evaluate", "training"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments without the program's name; None means this process's.

    Returns:
        The exit status: 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        delegated = bool(arguments) and arguments[0] in _DELEGATES
        status = _delegate(arguments[0], arguments[1:]) if delegated else _ask(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left, e.g. `head`. What is still in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _ask(arguments: list[str]) -> int:
    grammar = parser(importlib.metadata.version("convlens"))
    if not arguments:
        grammar.print_help(sys.stderr)
        return 2
    try:
        options = grammar.parse_args(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    try:
        status: int = options.run(options)
    except BrokenPipeError:
        raise
    except (Error, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and isinstance(error.filename, str | os.PathLike):
            text = f"{os.fspath(error.filename)}: {error.strerror}"
        print(f"convlens: {' '.join(text.split())}", file=sys.stderr)
        return 1
    return status


def _delegate(command: str, arguments: list[str]) -> int:
    module, extras = _DELEGATES[command]
    try:
        status: int = importlib.import_module(module).main(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in _OURS or importlib.util.find_spec(missing):
            raise
        print(
            f"convlens: {command} needs the package {missing}, which is missing: pip install 'convlens[{extras}]'",
            file=sys.stderr,
        )
        return 1
    return status
