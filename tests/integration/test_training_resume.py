"""Trainings that are killed, interrupted or damaged, and go on."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image

import killing
from convlens_training import export, speed
from convlens_training.cli import main
from convlens_training.errors import TrainingError

# Processes that import torch take a minute to start where the machine is busy.
pytestmark = pytest.mark.timeout(300)
# The `convlens` command with its usual SIGINT, which shells switch off for what they run in the background.
_COMMAND = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)
from convlens.cli import main

sys.exit(main())
"""
# What an epoch took, which is never the same.
_TIMES = ("seconds", "images_per_second", "data_wait")


def draw(folder, seed=0):
    """Three classes of noisy colours, ten images each to train on."""
    random = np.random.default_rng(seed)
    for part, count in (("train", 10), ("val", 6), ("test", 4)):
        for channel, label in enumerate(("red", "green", "blue")):
            (folder / part / label).mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(0, 200, (64, 64, 3))
                pixels[..., channel] += 40
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / label / f"{n}.png")
    return folder


def arguments(folder, *flags):
    where = ["--models", str(folder / "models"), "--runs", str(folder / "runs"), "--device", "cpu"]
    how = ["--epochs", str(killing.EPOCHS), "--batch-size", "10", "--learning-rate", "0.002"]
    return ["tiny_vgg_bn", "--data", str(folder.parent / "data"), *how, *where, *flags]


def run_of(folder):
    (run,) = (folder / "runs").iterdir()
    return run


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]


def plain(value):
    """A checkpoint's content with bytes instead of tensors, so that == compares to the last bit."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return (value.shape, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value


def checkpoints_of(run):
    return {path.name: plain(torch.load(path, weights_only=True)) for path in sorted((run / "checkpoints").iterdir())}


@pytest.fixture(scope="module")
def processes():
    return killing.processes()


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Whether int8 is faster on this machine is not the question here."""
    monkeypatch.setattr(speed, "images_per_second", lambda contents, *_: [1.0] * len(contents))


@pytest.fixture
def unexported(monkeypatch):
    """Trainings end where the export begins."""

    def to_onnx(*_):
        raise TrainingError("far enough")

    monkeypatch.setattr(export, "to_onnx", to_onnx)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run from beginning to end; its folder's parent has the data."""
    folder = tmp_path_factory.mktemp("trainings")
    draw(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "images_per_second", lambda contents, *_: [1.0] * len(contents))
        assert main(arguments(folder / "unbroken")) == 0
    return folder / "unbroken"


@pytest.mark.parametrize(
    "moment",
    [
        "in the first epoch",
        "while the first checkpoint is written",
        "before the best checkpoint is in place",
        "before the last checkpoint is in place",
        "between epochs",
        "in the last epoch",
    ],
)
def test_ends_where_an_unbroken_run_ends(unbroken, processes, unexported, capsys, moment):
    folder = unbroken.parent / moment.replace(" ", "_")
    assert killing.killed(processes, arguments(folder), moment) == -signal.SIGKILL
    run = run_of(folder)
    done = len(metrics_of(run)) if (run / "metrics.jsonl").exists() else 0
    assert done < killing.EPOCHS
    assert main(["--resume", str(run)]) == 1
    output = capsys.readouterr().err
    assert "far enough" in output
    assert f"epoch {killing.EPOCHS}/{killing.EPOCHS}" in output
    assert checkpoints_of(run) == checkpoints_of(run_of(unbroken))
    assert metrics_of(run) == metrics_of(run_of(unbroken))
    assert [line["epoch"] for line in metrics_of(run)] == list(range(1, killing.EPOCHS + 1))


def test_tensorboard_shows_each_epoch_once(unbroken, processes, unexported):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = unbroken.parent / "tensorboard"
    moment = "before the last checkpoint is in place"
    assert killing.killed(processes, arguments(folder, "--tensorboard"), moment) == -signal.SIGKILL
    run = run_of(folder)
    # TensorBoard reads its files in order of the second they were made in, which is in their names.
    [first] = (run / "tensorboard").iterdir()
    while int(time.time()) <= first.stat().st_ctime:
        time.sleep(0.05)
    assert main(["--resume", str(run)]) == 1
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = metrics_of(run)
    for name in ("train_loss", "validation_accuracy", "learning_rate"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["epoch"], pytest.approx(line[name])) for line in lines]


def test_is_published_once_and_whole_whenever_it_is_killed(unbroken, processes, capsys):
    folder = unbroken.parent / "publication"
    command = arguments(folder)
    for moment, versions in (("before the export", 0), ("before a version is in place", 0), ("before the report", 1)):
        assert killing.killed(processes, command, moment) == -signal.SIGKILL
        run = run_of(folder)
        command = ["--resume", str(run)]
        assert len(list((folder / "models").glob("tiny_vgg_bn/*"))) == versions
        assert not (run / "result.json").exists()
    assert main(command) == 0
    assert f"run {run}, going on after epoch {killing.EPOCHS}" in capsys.readouterr().err
    versions = list((folder / "models").glob("tiny_vgg_bn/*"))
    assert [path.name for path in versions] == ["1"]
    whole = unbroken / "models" / "tiny_vgg_bn" / "1"
    assert contents(versions[0]) == contents(whole)
    assert (run / "report.md").exists()

    # And now there is nothing to go on with.
    assert main(command) == 1
    assert f"--resume {run}: the run is finished" in capsys.readouterr().err
    assert [path.name for path in (folder / "models").glob("tiny_vgg_bn/*")] == ["1"]


def test_publishes_the_best_epochs_weights(unbroken):
    run = run_of(unbroken)
    lines = metrics_of(run)
    best = max(lines, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    result = json.loads((run / "result.json").read_text())
    assert result["export"]["epoch"] == best["epoch"]
    kept = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["epoch"] == best["epoch"]
    model = onnx.load(unbroken / "models" / "tiny_vgg_bn" / "1" / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(tensors["output.bias"], kept["average"]["output.bias"])


@pytest.fixture
def interrupted(unbroken, tmp_path, unexported, capsys):
    """A run that has checkpoints and no export."""
    folder = tmp_path / "interrupted"
    draw(tmp_path / "data")
    assert main([*arguments(folder), "--epochs", "1"]) == 1
    capsys.readouterr()
    return run_of(folder)


class TestCannotGoOn:
    def refused(self, capsys, run, *flags):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert main(["--resume", str(run), *flags]) == 1
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        output = capsys.readouterr()
        assert output.out == ""
        return output.err.splitlines()[-1]

    def test_with_other_flags(self, capsys, interrupted):
        text = self.refused(capsys, interrupted, "--seed", "3")
        assert text.endswith("that run has seed 0, not 3: leave it out, or begin anew without --resume")
        text = self.refused(capsys, interrupted, "--epochs", "7")
        assert "that run has epochs 1, not 7" in text

    @pytest.mark.parametrize(("name", "damage"), [("last.ckpt", 0.5), ("last.ckpt", 0.0)])
    def test_with_a_damaged_checkpoint(self, capsys, interrupted, name, damage):
        path = interrupted / "checkpoints" / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * damage)])
        text = self.refused(capsys, interrupted)
        assert text.startswith(f"convlens train: {path} is no checkpoint of ours or is damaged (")
        assert text.endswith("): begin anew")

    def test_with_other_data(self, capsys, interrupted):
        data = interrupted.parent.parent.parent / "data"
        Image.new("RGB", (64, 64)).save(data / "train" / "red" / "0.png")
        text = self.refused(capsys, interrupted)
        assert "last.ckpt has data " in text
        assert text.endswith("its data has changed since: restore it, or begin anew without --resume")

    def test_with_another_network_or_recipe(self, capsys, interrupted):
        path = interrupted / "config.yaml"
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**config, "network": "tiny_vgg"}))
        text = self.refused(capsys, interrupted)
        assert "last.ckpt has network tiny_vgg_bn, not tiny_vgg: give the folder of a run of this network" in text
        path.write_text(yaml.safe_dump({**config, "recipe": {**config["recipe"], "ema": 0.5}}))
        assert "its config.yaml has changed since: restore it" in self.refused(capsys, interrupted)
        path.write_text("network: [")
        assert f"{path} cannot be read: " in self.refused(capsys, interrupted)
        path.write_text("network: tiny_vgg")
        assert f"{path} is damaged or of another release" in self.refused(capsys, interrupted)

    def test_without_a_run(self, capsys, tmp_path):
        assert main(["--resume", str(tmp_path)]) == 1
        assert f"{tmp_path / 'config.yaml'} is missing" in capsys.readouterr().err


def test_an_interruption_by_the_keyboard(tmp_path, capsys):
    """On a terminal, where a bar tells the rate and the time that is left."""
    draw(tmp_path / "data")
    folder = tmp_path / "interrupted"
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 150))
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "train", *arguments(folder), "--epochs", "100000", "--image-size", "256"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=end,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    os.close(end)
    shown = ""
    try:
        # The bar of a later epoch: the first one's checkpoint is there.
        while not re.search(
            r"epoch (?!1/)\d+/100000: +\d+%\|.*\| \d+/30 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ images/s", shown
        ):
            shown += os.read(terminal, 4096).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while True:
            shown += os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # the other end is closed
        output, _ = process.communicate()
    finally:
        os.close(terminal)
        process.kill()
    assert (process.returncode, output) == (130, b""), shown
    assert shown.endswith("convlens train: interrupted, nothing was published\r\n")
    assert not list(folder.rglob("*.onnx"))
    run = run_of(folder)
    done = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    assert 1 <= done <= len(metrics_of(run)) <= done + 1
