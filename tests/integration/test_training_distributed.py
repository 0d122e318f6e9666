"""Trainings by several processes, which the command starts itself or torchrun does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convlens_training import pipeline, speed
from convlens_training.cli import main
from support import free_port

# Processes that import torch take a minute to start where the machine is busy.
pytestmark = pytest.mark.timeout(300)
EPOCHS = 8
# What a process of the training runs: the command, without the half minute in which it times its exports.
PROGRAM = """
import os
import sys
from convlens_training import feed, speed
from convlens_training.cli import main

speed.images_per_second = lambda contents, *_: [1.0] * len(contents)
failing = sys.argv[1]
if failing == os.environ.get("LOCAL_RANK", "0"):
    batches = feed.Feed.batches

    def fail(self, epoch):
        for batch in batches(self, epoch):
            if epoch == 2:
                raise RuntimeError("this one is broken")
            yield batch

    feed.Feed.batches = fail
sys.exit(main(sys.argv[2:]))
"""
LINES = (
    r"training on cpu: torch finds no CUDA device",
    r"tiny_vgg_bn on data: 2 classes, 60 images train, 40 images held out, 0 files skipped",
    r"  (dark|light): 30 train, 20 held out",
    r"run \S+",
    rf"epoch \d/{EPOCHS}: loss [\d.]+, accuracy [\d.]+% in training, [\d.]+% held out, .*",
    r"exporting to ONNX as .*",
    r"the export's logits differ from torch's by at most .*",
    r"(float16|int8): .*",
)


@pytest.fixture
def command(tmp_path):
    """A learnable task; gives the command's arguments."""
    random = np.random.default_rng(0)
    for label, least in (("dark", 0), ("light", 40)):
        for part, count in (("train", 30), ("test", 20)):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(least, least + 200, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / label / f"{n}.png")
    (tmp_path / "program.py").write_text(PROGRAM)
    flags = ["--image-size", "32", "--epochs", str(EPOCHS), "--batch-size", "12", "--learning-rate", "0.002"]
    return ["tiny_vgg_bn", "--data", "data", *flags, "--models", "models", "--runs", "runs", "--json"]


@pytest.fixture
def start():
    """Starts Python in a folder; what is left of it at the end is killed, with all that it has started."""
    started = []

    def start(folder, *command):
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def accuracy_of(folder, text):
    """The accuracy of what was published, which must be one version with a whole run."""
    result = json.loads(text)
    assert [path.name for path in (folder / "models" / "tiny_vgg_bn").iterdir()] == ["1"]
    (run,) = (folder / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    # What the processes measured together is what the export gives on all images.
    assert lines[-1]["validation_accuracy"] == pytest.approx(result["test_accuracy"])
    return result["test_accuracy"]


def test_two_processes_learn_what_one_learns_and_publish_once(tmp_path, start, command, monkeypatch, capsys):
    two = start(tmp_path, "program.py", "none", *command, "--devices", "2", "--device", "auto")
    output, errors = two.communicate(timeout=280)
    assert two.returncode == 0, errors
    strange = [line for line in errors.splitlines() if not any(re.fullmatch(form, line) for form in LINES)]
    assert strange == []
    together = accuracy_of(tmp_path, output)

    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.setattr(speed, "images_per_second", lambda contents, *_: [1.0] * len(contents))
    assert main([*command, "--data", "../data"]) == 0
    alone = accuracy_of(tmp_path / "one", capsys.readouterr().out)
    assert abs(alone - together) <= 0.1
    assert alone > 0.85


@pytest.mark.parametrize("failing", ["0", "1"])
def test_an_error_in_one_process_ends_all(tmp_path, start, command, failing):
    both = start(tmp_path, "program.py", failing, *command, "--devices", "2")
    # Until all have closed them.
    output, errors = both.communicate(timeout=280)
    assert both.returncode not in (0, None)
    assert output == ""
    assert "this one is broken" in errors
    assert "epoch 2/" not in errors
    assert not (tmp_path / "models").exists()


def test_two_machines_by_torchrun(tmp_path, start, command):
    """Each has the data; what comes of it is on the first one only."""
    second = tmp_path / "second"
    second.mkdir()
    for name in ("data", "program.py"):
        (second / name).symlink_to(tmp_path / name)
    where = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    machines = [
        start(folder, "-m", "torch.distributed.run", *where, f"--node-rank={rank}", "program.py", "none", *command)
        for rank, folder in enumerate((tmp_path, second))
    ]
    (output, errors), (no_output, no_errors) = (machine.communicate(timeout=280) for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], errors + no_errors
    assert accuracy_of(tmp_path, output) > 0.85
    assert (no_output, no_errors) == ("", "")
    assert sorted(path.name for path in second.iterdir()) == ["data", "program.py"]


def test_other_data_than_the_first_process_has_is_refused(tmp_path, command, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.Fabric, "broadcast", lambda fabric, value: "of the first")
    assert main(command) == 1
    assert "the images of data here are not those that the first process has" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
