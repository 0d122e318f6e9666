from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens_training import plots
from convlens_training.errors import TrainingError
from convlens_training.evaluation import Evaluation
from convlens_training.figures import duration
from convlens_training.report import write_evaluation, write_report
from convlens_training.runs import RunFolder

LINE = {
    "epoch": 1,
    "train_loss": 1.5,
    "train_accuracy": 0.5,
    "validation_loss": 1.25,
    "validation_accuracy": 0.75,
    "learning_rate": 0.01,
    "images_per_second": 2000.0,
    "data_wait": 0.02,
    "seconds": 61.0,
}
EXPORT = {
    "model": "cats",
    "version": 3,
    "parameters": 19920,
    "max_logit_difference": 1.2e-5,
    "timings": [{"batch": 16, "threads": 1, "float32": 1500.25, "float16": 1234.5}],
    "variants": [
        {"precision": "float16", "accuracy": 0.75, "images_per_second": 1234.5, "published": True, "reason": ""},
        {
            "precision": "int8",
            "accuracy": 0.5,
            "images_per_second": 99.0,
            "published": False,
            "reason": "a | b",
        },
    ],
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "tiny_vgg", "cats")
    run.write_config(
        {"network": "tiny_vgg", "data": "/some/where/cats", "recipe": {"epochs": 2}, "seed": 1234, "max_drop": 0.2}
    )
    run.write_environment()
    run.log(LINE)
    run.log({**LINE, "epoch": 2})
    return run


def evaluation(count: int, labels: tuple[str, ...] = ("big cat", "dog"), wrong: int = 1) -> Evaluation:
    """The first ones are answered wrong, the first of all the most."""
    truth = np.arange(count) % len(labels)
    logits = np.zeros((count, len(labels)), np.float32)
    logits[np.arange(count), truth] = 3
    for n in range(wrong):
        logits[n] = np.roll(logits[n], 1) * (1 + 1 / (n + 1))
    return Evaluation(labels, truth, logits)


def pictures(count: int, channels: int = 3, side: int = 8) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, side, side, channels), np.uint8)


def cells(text: str, first: str) -> list[str]:
    """The cells of the row of a table that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_report_shows_everything(run):
    write_report(run, evaluation(8), pictures(8), EXPORT)
    text = (run.path / "report.md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == ["curves.png", "confusion.png", "mistakes.png"]
    for name in shown:
        with Image.open(run.path / name) as image:
            image.load()
            assert min(image.size) > 100
    assert text.startswith("# tiny_vgg on cats\n\naccuracy 87.50% ± 11.69% (standard error): 7 of 8 held-out images")
    assert cells(text, "big cat")[1:] == ["100.0%", "75.0%", "85.7%", "4"]
    assert cells(text, "dog")[1:] == ["80.0%", "100.0%", "88.9%", "4"]
    assert cells(text, "epochs")[1] == "2"
    assert cells(text, "time")[1] == "2 min 02 s"
    assert cells(text, "waiting for data (median)")[1] == "2.0% of the step"
    assert cells(text, "parameters")[1] == "19,920"
    assert text.index("### Variants") < text.index("### Images a second on this machine's CPU")
    assert cells(text, "16")[1:] == ["1", "1,500", "1,234"]
    assert cells(text, "float16")[1:] == ["75.00%", "1,234", "yes", "–"]
    assert "| int8 | 50.00% | 99 | no | a \\| b |" in text
    assert cells(text, "seed")[1] == "1234"
    assert cells(text, "recipe: epochs")[1] == "2"
    assert cells(text, "packages: numpy")[1] == np.__version__
    assert cells(text, "max drop")[1] == "0.2 points of per cent"


def test_the_files_are_named(run):
    write_report(run, evaluation(8), pictures(8), EXPORT)
    assert "export/" not in (run.path / "report.md").read_text()
    run.write_export({"model.onnx": bytes(12345), "model.int8.onnx": bytes(99)})
    write_report(run, evaluation(8), pictures(8), EXPORT)
    text = (run.path / "report.md").read_text()
    assert "The files are in [export](export/) too: model.int8.onnx (99 bytes), model.onnx (12,345 bytes)." in text


@pytest.mark.parametrize(("count", "words"), [(0, "held out"), (12, "validation")])
def test_what_each_epoch_was_measured_on_is_called_by_its_name(run, monkeypatch, count, words):
    drawn = []
    curves = plots.curves
    monkeypatch.setattr(plots, "curves", lambda *arguments: drawn.append(curves(*arguments)) or drawn[-1])
    write_report(run, evaluation(8), pictures(8), {"validation_images": count})
    text = (run.path / "report.md").read_text()
    assert cells(text, f"{words}, last epoch")[1] == "accuracy 75.00%, loss 1.2500"
    assert [entry.get_text() for entry in drawn[0].axes[0].get_legend().get_texts()] == ["training", words]


def test_a_report_finishes_the_run(run):
    assert run.result() is None
    shown = evaluation(8)
    write_report(run, shown, pictures(8), EXPORT)
    result = run.result()
    assert result is not None
    assert result["accuracy"] == shown.accuracy
    assert result["loss"] == pytest.approx(shown.loss)
    assert result["export"] == EXPORT
    np.testing.assert_array_equal(Evaluation.load(run.path / "evaluation.npz").logits, shown.logits)


def test_without_mistakes_there_is_no_picture_of_them(run):
    write_report(run, evaluation(8), pictures(8), {})
    assert (run.path / "mistakes.png").exists()
    write_report(run, evaluation(8, wrong=0), pictures(8), {})
    assert not (run.path / "mistakes.png").exists()
    text = (run.path / "report.md").read_text()
    assert "mistakes.png" not in text
    assert "every image is answered with its label" in text


def test_a_report_that_cannot_be_written_leaves_the_run_unfinished(run):
    (run.path / "confusion.png").mkdir()
    with pytest.raises(TrainingError, match=r"confusion\.png cannot be written"):
        write_report(run, evaluation(8), pictures(8), EXPORT)
    assert run.result() is None
    assert not [path for path in run.path.iterdir() if path.name.endswith(".part")]


def test_labels_that_mean_something_to_markdown_or_to_tex(tmp_path):
    labels = ("a|b", "<b>$x_1$", "奶酪", "_under_")
    write_evaluation(tmp_path, "*odd*", evaluation(8, labels, wrong=4), pictures(8, 1), {"data": "a_b"})
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# \\*odd\\*\n")
    assert "| a\\|b |" in text
    assert "| &lt;b&gt;\\$x_1\\$ |" in text
    assert "| \\_under\\_ |" in text
    assert "| data | a_b |" in text


def test_a_class_without_images_or_answers(tmp_path):
    logits = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
    write_evaluation(tmp_path, "x", Evaluation(("a", "b", "c"), np.array([0, 1]), logits), pictures(2), {})
    text = (tmp_path / "report.md").read_text()
    assert cells(text, "b")[1:] == ["–", "0.0%", "0.0%", "1"]
    assert cells(text, "c")[1:] == ["–", "–", "–", "0"]
    assert cells(text, "mean of the classes")[1:] == ["50.0%", "50.0%", "33.3%", "2"]


@pytest.mark.parametrize("classes", [2, 20, 30, 100])
def test_a_confusion_matrix_of_any_size(tmp_path, classes):
    shown = evaluation(3 * classes, tuple(f"class number {n} of those with long names" for n in range(classes)))
    plots.save(plots.confusion(shown), tmp_path / "confusion.png")
    figure = plots.confusion(shown)
    counts = [text.get_text() for text in figure.axes[0].texts]
    assert counts == (["2", "1", "3"] if classes == 2 else ["2", "1", *["3"] * 19] if classes == 20 else [])
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 2100
    # The matrix has most of the picture's height, and nothing of it or beside it is cut off.
    figure.draw_without_rendering()
    whole, matrix = figure.bbox, figure.axes[0].get_window_extent()
    assert matrix.height > 0.5 * whole.height
    seen = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert seen.x0 >= 0
    assert seen.y0 >= 0
    assert seen.x1 <= whole.x1
    assert seen.y1 <= whole.y1


def test_the_worst_mistakes_come_first(tmp_path):
    figure = plots.mistakes(evaluation(100, wrong=60), pictures(100))
    assert figure is not None
    assert len(figure.axes) == 40
    assert [text.get_text() for text in figure.texts[:4]] == [
        "big cat · 0%", "→ dog · 99%", "dog · 1%", "→ big cat · 98%",
    ]  # fmt: skip
    first = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.asarray(first), pictures(100)[0])


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 300), (3, 1)])
def test_pixels_are_shown_as_squares(tmp_path, channels, side):
    images = pictures(4, channels, side)
    figure = plots.mistakes(evaluation(4), images)
    assert figure is not None
    plots.save(figure, tmp_path / "mistakes.png")
    if side == 300:
        return
    scale = 140 // side
    with Image.open(tmp_path / "mistakes.png") as opened:
        drawn = np.asarray(opened.convert("RGB"))
    # The tile is found by its place: 12 pixels from the left and from the bottom of its row.
    bottom = len(drawn) - 12
    tile = drawn[bottom - scale * side : bottom, 12 : 12 + scale * side]
    enlarged = np.broadcast_to(images[0], (side, side, 3)).repeat(scale, 0).repeat(scale, 1)
    np.testing.assert_allclose(tile.astype(int), enlarged.astype(int), atol=1)


@pytest.mark.parametrize(
    "lines", [[LINE], [{"epoch": 1}], [LINE, {**LINE, "epoch": 2, "validation_loss": math.nan}], [LINE] * 50]
)
def test_curves_of_what_there_is(tmp_path, lines):
    plots.save(plots.curves(lines), tmp_path / "curves.png")


def test_curves_are_labelled(tmp_path):
    loss, accuracy, rate = plots.curves([LINE, {**LINE, "epoch": 2}]).axes
    for axes, title in ((loss, "Loss"), (accuracy, "Accuracy"), (rate, "Learning rate")):
        assert axes.get_title(loc="left").startswith(title)
        assert axes.get_xlabel() == "epoch"
    legend = accuracy.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (187, "3 min 07 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
