"""Writes what a run or an evaluation gave, for people: a page of tables and pictures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convlens_training import plots
from convlens_training.evaluation import Evaluation
from convlens_training.figures import CLASS_TITLES, class_rows, duration, headline, share
from convlens_training.files import replacing
from convlens_training.runs import EXPORT, RunFolder

REPORT, EVALUATION = "report.md", "evaluation.npz"
_CURVES, _CONFUSION, _MISTAKES = "curves.png", "confusion.png", "mistakes.png"
# What is shown as tables of their own, and their titles.
_TABLES = {"variants": "Variants", "timings": "Images a second on this machine's CPU"}
# Of the confused pairs so many are listed.
_MOST_PAIRS = 10


def write_report(
    run: RunFolder, evaluation: Evaluation, images: npt.NDArray[np.uint8], export: Mapping[str, Any]
) -> None:
    """Writes report.md with curves.png, confusion.png, mistakes.png and evaluation.npz; then result.json.

    The last makes the run a finished one. mistakes.png is left out where there are none.

    Args:
        run: With config.yaml, environment.yaml and metrics.jsonl.
        evaluation: Of the export, on the held-out images.
        images: uint8 N × height × width × channels, those of the evaluation.
        export: What was exported and published: any names with JSON values. "parameters" is shown by `convlens runs`;
            "variants" and "timings", sequences of mappings with the same names each (precision, accuracy, …), become
            tables; shares are known by names that end in accuracy or agreement. Where "validation_images" is 0, each
            epoch was measured on the held-out images.

    Raises:
        TrainingError: The file system refuses, or a file of the run is damaged.
    """
    epochs, config = run.metrics(), run.config()
    measured_on = "held out" if export.get("validation_images") == 0 else "validation"
    title = f"{config.get('network', 'a network')} on {Path(str(config.get('data', 'its data'))).name}"
    sections = [f"# {_cell(title)}", headline(evaluation)]
    if epochs:
        plots.save(plots.curves(epochs, measured_on), run.path / _CURVES)
        sections += ["## Training", _table(("", ""), _training(epochs, measured_on)), f"![curves]({_CURVES})"]
    sections += _answers(evaluation, images, run.path)
    plain = {name: value for name, value in export.items() if name not in _TABLES}
    sections += ["## Export", _table(("", ""), _flat(plain))]
    sections.append(
        "Logits and labels are compared with those of the network in torch, here and in the variants, on all held-out "
        "images."
    )
    if run.export.is_dir():
        files = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in sorted(run.export.iterdir()))
        sections.append(f"The files are in [{EXPORT}]({EXPORT}/) too: {files}.")
    for name, title in _TABLES.items():
        if lines := export.get(name):
            names = list(lines[0])
            rows = [[_shown(name, line.get(name)) for name in names] for line in lines]
            sections += [f"### {title}", _table([_words(name) for name in names], rows)]
    sections += ["## Configuration", _table(("", ""), _flat(config))]
    sections += ["## Environment", _table(("", ""), _flat(run.environment()))]
    _write(sections, run.path)
    run.write_result(
        {
            "accuracy": evaluation.accuracy,
            "accuracy_error": evaluation.accuracy_error,
            "loss": evaluation.loss,
            "images": len(evaluation.truth),
            "export": export,
        }
    )


def write_evaluation(
    folder: Path, title: str, evaluation: Evaluation, images: npt.NDArray[np.uint8], facts: Mapping[str, Any]
) -> None:
    """Writes the part of a report that is about the answers: report.md, confusion.png, mistakes.png, evaluation.npz.

    Args:
        folder: Where to; it exists.
        title: Of the page.
        evaluation: What was answered.
        images: uint8 N × height × width × channels, those of the evaluation.
        facts: Names and values, for a table.

    Raises:
        TrainingError: The file system refuses.
    """
    table = _table(("", ""), _flat(facts))
    _write([f"# {_cell(title)}", headline(evaluation), table, *_answers(evaluation, images, folder)], folder)


def _answers(evaluation: Evaluation, images: npt.NDArray[np.uint8], folder: Path) -> list[str]:
    """The sections about an evaluation; writes the pictures that they show, and the archive."""
    evaluation.save(folder / EVALUATION)
    plots.save(plots.confusion(evaluation), folder / _CONFUSION)
    sections = [
        "## Classes",
        _table(CLASS_TITLES, class_rows(evaluation)),
        "Precision: of the images answered with this label, the share that are of it. Recall: of the images of this "
        "label, the share answered with it.",
        "## Confusion",
        f"![confusion matrix]({_CONFUSION})",
    ]
    if pairs := _pairs(evaluation):
        sections.append(_table(("label", "answered", "images", "of the label's"), pairs))
    sections.append("## Worst mistakes")
    picture = plots.mistakes(evaluation, images)
    if picture is None:
        (folder / _MISTAKES).unlink(missing_ok=True)
        sections.append("There are none: every image is answered with its label.")
    else:
        plots.save(picture, folder / _MISTAKES)
        sections += [
            "Above each image its label, below that the answer, each with its score; those furthest apart first.",
            f"![worst mistakes]({_MISTAKES})",
        ]
    return sections


def _pairs(evaluation: Evaluation) -> list[list[str]]:
    """The pairs that are confused most."""
    counts = evaluation.confusion
    totals = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [divmod(int(index), len(counts)) for index in order]
    return [
        [evaluation.labels[row], evaluation.labels[column], str(counts[row, column]),
         share(counts[row, column] / totals[row])]
        for row, column in pairs
        if counts[row, column]
    ]  # fmt: skip


def _training(epochs: Sequence[Mapping[str, float]], measured_on: str) -> list[list[str]]:
    last = epochs[-1]
    rows = [["epochs", str(len(epochs))]]
    if any("seconds" in line for line in epochs):
        rows.append(["time", duration(sum(line.get("seconds", 0) for line in epochs))])
    for name, words in (("images_per_second", "images a second (median)"), ("data_wait", "waiting for data (median)")):
        if values := [line[name] for line in epochs if name in line]:
            middle = statistics.median(values)
            rows.append([words, f"{middle:,.0f}" if name == "images_per_second" else f"{middle:.1%} of the step"])
    for part in ("train", "validation"):
        if f"{part}_accuracy" in last and f"{part}_loss" in last:
            words = "training" if part == "train" else measured_on
            rows.append(
                [f"{words}, last epoch", f"accuracy {last[f'{part}_accuracy']:.2%}, loss {last[f'{part}_loss']:.4f}"]
            )
    return rows


def _flat(values: Mapping[str, Any], before: str = "") -> list[list[str]]:
    """Names and values, those of inner mappings with the outer name before theirs."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{_words(name)}: ")
        else:
            rows.append([f"{before}{_words(name)}", _shown(name, value)])
    return rows


def _shown(name: str, value: Any) -> str:
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if name in ("seed", "version") else f"{value:,}"
    if isinstance(value, float):
        if name.endswith(("accuracy", "agreement")):
            return f"{value:.2%}"
        if name.endswith("drop"):
            return f"{value:g} points of per cent"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown("", each) for each in value)
    return str(value)


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; columns in which all begin with a digit or a dash are aligned right."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    numeric = [
        bool(cells) and bool(titles[n]) and all(row[n][:1].isdigit() or row[n] == "–" for row in cells)
        for n in range(len(titles))
    ]
    lines = [list(titles), ["---:" if right else "---" for right in numeric], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    # What Markdown or HTML would take for their own.
    text = re.sub(r"[\\|*`\[\]$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
    return " ".join(text.replace("<", "&lt;").replace(">", "&gt;").split())


def _write(sections: Iterable[str], folder: Path) -> None:
    with replacing(folder / REPORT) as file:
        file.write(("\n\n".join(sections) + "\n").encode())
