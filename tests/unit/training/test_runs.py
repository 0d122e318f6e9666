from __future__ import annotations

import errno
import getpass
import json
import math
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml

from convlens_training.errors import TrainingError
from convlens_training.runs import RunFolder

LINE = {"epoch": 1, "train_loss": 0.5, "validation_accuracy": 0.75, "seconds": 2.0}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "lecture_cnn", "mnist5k")


def test_each_run_has_a_folder_of_its_own(tmp_path):
    runs = [RunFolder.create(tmp_path / "a" / "runs", "tiny_vgg", "photos/my cats/") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    for run in runs:
        assert re.fullmatch(r"tiny_vgg-my_cats-\d{8}-\d{6}(-\d)?", run.path.name)
        assert run.checkpoints.is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(TrainingError, match=r"runs.tiny_vgg-x.* cannot be written \(.*make room or change permissions"):
        RunFolder.create(tmp_path / "runs", "tiny_vgg", "x")


def test_config_keeps_plain_values(run):
    run.write_config(
        {"network": "tiny_vgg", "data": Path("a/b"), "recipe": {"epochs": 2, "scale": (0.9, np.float32(2))}}
    )
    assert run.config() == {"network": "tiny_vgg", "data": "a/b", "recipe": {"epochs": 2, "scale": [0.9, 2.0]}}
    assert "!!" not in (run.path / "config.yaml").read_text()


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_a_damaged_config_is_named(run, content):
    (run.path / "config.yaml").write_text(content)
    with pytest.raises(TrainingError, match=r"config\.yaml"):
        run.config()


def test_a_folder_without_config_is_no_run(run):
    with pytest.raises(TrainingError, match=r"config\.yaml is missing: .* is no folder of a training run"):
        run.config()


def test_the_environment_names_releases_but_no_machine(run):
    run.write_environment()
    text = (run.path / "environment.yaml").read_text()
    found = yaml.safe_load(text)
    assert found == run.environment()
    assert found["packages"]["numpy"] == np.__version__
    assert {"convlens", "torch", "onnx"} <= set(found["packages"])
    assert found["cores"] >= 1
    assert found["cpu"]
    assert "/" not in text
    names = {socket.gethostname(), getpass.getuser()} - {"localhost"}
    assert not [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)]


def test_metrics_come_back(run):
    assert run.metrics() == []
    run.log(LINE)
    run.log({**LINE, "epoch": 2, "train_loss": np.float32(0.25), "learning_rate": math.nan})
    first, second = run.metrics()
    assert first == LINE
    assert second["train_loss"] == 0.25
    assert isinstance(second["epoch"], int)
    assert math.isnan(second["learning_rate"])
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_line_that_a_kill_cut_short_is_ignored_and_replaced(run):
    run.log(LINE)
    path = run.path / "metrics.jsonl"
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole + whole[:length])
        assert run.metrics() == [LINE]
    run.log({**LINE, "epoch": 2})
    assert [line["epoch"] for line in run.metrics()] == [1, 2]
    path.write_bytes(whole[:5])
    assert run.metrics() == []
    run.log(LINE)
    assert run.metrics() == [LINE]


@pytest.mark.parametrize("damage", [b"{]\n", b'{"epoch": "one"}\n', b"3\n", b"\xff\n"])
def test_a_damaged_line_is_named(run, damage):
    run.log(LINE)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    with pytest.raises(TrainingError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        run.metrics()


def test_epochs_that_are_done_again_are_forgotten(run):
    run.forget_after(0)
    for epoch in (1, 2, 3):
        run.log({**LINE, "epoch": epoch})
    run.forget_after(2)
    assert [line["epoch"] for line in run.metrics()] == [1, 2]
    run.log({**LINE, "epoch": 3})
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]
    run.forget_after(0)
    assert run.metrics() == []
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "metrics.jsonl"]


def test_a_run_is_finished_with_its_result(run):
    assert run.result() is None
    run.write_result({"accuracy": np.float64(0.5), "export": {"model": "a", "path": Path("m/1/model.onnx")}})
    assert run.result() == {"accuracy": 0.5, "export": {"model": "a", "path": "m/1/model.onnx"}}
    (run.path / "result.json").write_text("{")
    with pytest.raises(TrainingError, match=r"result\.json cannot be read"):
        run.result()


def test_an_export_is_there_whole(run, monkeypatch):
    seen = []
    rename = Path.rename

    def watched(self, target):
        seen.append({path.name: path.read_bytes() for path in self.iterdir()})
        assert not Path(target).exists()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    (run.path / ".export.0123abcd.part").mkdir()  # as a kill leaves it
    (run.path / ".export.0123abcd.part" / "model.onnx").touch()
    for files in ({"model.onnx": b"a", "model.int8.onnx": b"b"}, {"model.onnx": b"c"}):
        run.write_export(files)
        assert {path.name: path.read_bytes() for path in run.export.iterdir()} == seen.pop() == files
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "export"]


def test_an_export_that_cannot_be_written_is_not_there(run, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"export cannot be written \(No space left on device\): make room"):
        run.write_export({"model.onnx": b"a"})
    assert [path.name for path in run.path.iterdir()] == ["checkpoints"]


def test_a_full_disk_is_said(run, monkeypatch):
    run.write_config({"network": "a"})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be written \(No space left on device\): make room"):
        run.log(LINE)
    with pytest.raises(TrainingError, match=r"config\.yaml cannot be written \(No space left on device\): make room"):
        run.write_config({"network": "b"})
    assert run.config() == {"network": "a"}
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl"]


def test_what_cannot_be_written_leaves_the_old_file(run):
    run.write_config({"network": "a"})
    with pytest.raises(TypeError, match="which a run's files cannot hold"):
        run.write_config({"network": object()})
    assert run.config() == {"network": "a"}
