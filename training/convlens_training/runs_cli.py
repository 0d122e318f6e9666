"""The command line: `convlens runs`."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convlens.cli import _show
from convlens_training.errors import TrainingError
from convlens_training.figures import duration
from convlens_training.runs import RunFolder


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in short; None where its files do not say.

    Attributes:
        path: Of its folder.
        started: As the folder's name says, YYYYmmdd-HHMMSS.
        network: Its name.
        data: What `--data` said.
        epochs: Done.
        planned_epochs: Asked for.
        accuracy: Fraction, of the export on the held-out images; of the last epoch in validation if not finished.
        loss: Likewise.
        parameters: Trained values.
        seconds: All epochs took.
        finished: Whether its result was written; if not, it was interrupted or still trains.
    """

    path: str
    started: str | None
    network: str | None
    data: str | None
    epochs: int
    planned_epochs: int | None
    accuracy: float | None
    loss: float | None
    parameters: int | None
    seconds: float
    finished: bool


# What to sort by, best or newest first; what is not known goes last.
_ORDERS: dict[str, Callable[[Summary], Any]] = {
    "started": lambda run: (run.started is None, [-ord(character) for character in run.started or ""], run.path),
    "accuracy": lambda run: (run.accuracy is None, -(run.accuracy or 0)),
    "loss": lambda run: (run.loss is None, run.loss or 0),
    "parameters": lambda run: (run.parameters is None, run.parameters or 0),
    "time": lambda run: run.seconds,
}


def main(argv: Sequence[str]) -> int:
    """Runs `convlens runs` with the arguments after "runs".

    Returns:
        The exit status: 0, or 1 where the folder of runs cannot be read. Single runs that cannot be read are named
        on standard error.

    Raises:
        SystemExit: Status 2, the usage is wrong; status 0 for --help.
    """
    options = _parser().parse_args(argv)
    try:
        folders = sorted(entry for entry in options.folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        print(
            f"convlens runs: {options.folder} cannot be read ({error.strerror}): give the folder that holds the runs, "
            "as `convlens train` made it",
            file=sys.stderr,
        )
        return 1
    summaries, unreadable = [], []
    for folder in folders:
        try:
            summaries.append(summary(RunFolder(folder)))
        except TrainingError as error:
            unreadable.append({"path": str(folder), "reason": str(error)})
    summaries.sort(key=_ORDERS[options.sort])
    if options.json:
        _show.as_json({"runs": [asdict(each) for each in summaries], "unreadable": unreadable})
    elif summaries:
        _table(summaries)
    else:
        print(f"no runs in {options.folder}")
    for each in unreadable:
        print(f"convlens runs: not listed: {each['reason']}", file=sys.stderr)
    return 0


def summary(run: RunFolder) -> Summary:
    """Reads a run's files. Raises TrainingError where one of them is missing or damaged."""
    config, epochs, result = run.config(), run.metrics(), run.result()
    last = epochs[-1] if epochs else {}
    figures = result or {"accuracy": last.get("validation_accuracy"), "loss": last.get("validation_loss")}
    recipe = config.get("recipe")
    export = (result or {}).get("export")
    started = re.search(r"-(\d{8}-\d{6})(-\d+)?$", run.path.name)
    return Summary(
        path=str(run.path),
        started=started[1] if started else None,
        network=_text(config.get("network")),
        data=_text(config.get("data")),
        epochs=len(epochs),
        planned_epochs=_whole(config.get("epochs", recipe.get("epochs") if isinstance(recipe, dict) else None)),
        accuracy=_number(figures.get("accuracy")),
        loss=_number(figures.get("loss")),
        parameters=_whole(config.get("parameters", export.get("parameters") if isinstance(export, dict) else None)),
        seconds=sum(value for line in epochs if math.isfinite(value := line.get("seconds", 0.0))),
        finished=result is not None,
    )


def _table(summaries: Sequence[Summary]) -> None:
    rows = [
        [
            Path(run.path).name,
            run.network,
            Path(run.data).name if run.data else None,
            f"{run.epochs}/{run.planned_epochs}" if run.planned_epochs else run.epochs,
            None if run.accuracy is None else f"{run.accuracy:.2%}",
            None if run.loss is None else f"{run.loss:.4f}",
            None if run.parameters is None else f"{run.parameters:,}",
            duration(run.seconds),
            "finished" if run.finished else "unfinished",
        ]
        for run in summaries
    ]
    titles = ["RUN", "NETWORK", "DATA", "EPOCHS", "ACCURACY", "LOSS", "PARAMETERS", "TIME", "STATE"]
    _show.table(titles, rows, right={"EPOCHS", "ACCURACY", "LOSS", "PARAMETERS", "TIME"})


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convlens runs",
        description="Lists training runs and compares them.",
        epilog="Accuracy and loss are those of the export on the held-out images; of a run that is not finished, those "
        "of its last epoch.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), metavar="DIR", help="the folder of the runs (%(default)s)"
    )
    parser.add_argument(
        "--sort", choices=_ORDERS, default="started", help="newest, or best first, or by what else (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
