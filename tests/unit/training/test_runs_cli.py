from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from convlens_training.runs import RunFolder
from convlens_training.runs_cli import main


@pytest.fixture
def add(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes a run: with an accuracy it is finished."""

    def add(name: str, epochs: int, accuracy: float | None = None, loss: float = 0.5) -> RunFolder:
        run = RunFolder(tmp_path / name)
        run.path.mkdir()
        run.write_config({"network": name.split("-")[0], "data": "/a/photos", "recipe": {"epochs": 5}})
        for epoch in range(1, epochs + 1):
            run.log({"epoch": epoch, "validation_accuracy": 0.1 * epoch, "validation_loss": 2.0, "seconds": 31.0})
        if accuracy is not None:
            run.write_result({"accuracy": accuracy, "loss": loss, "export": {"parameters": 19920}})
        return run

    return add


@pytest.fixture
def three(add):
    add("tiny_vgg-photos-20260101-120000", 5, 0.75)
    add("tiny_vgg-photos-20260102-120000", 5, 0.8, 0.25)
    add("lecture_cnn-photos-20260102-120000-2", 3)


def test_a_table(three, tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out] == [
        ["RUN", "NETWORK", "DATA", "EPOCHS", "ACCURACY", "LOSS", "PARAMETERS", "TIME", "STATE"],
        ["lecture_cnn-photos-20260102-120000-2", "lecture_cnn", "photos", "3/5", "30.00%", "2.0000", "1", "min", "33",
         "s", "unfinished"],
        ["tiny_vgg-photos-20260102-120000", "tiny_vgg", "photos", "5/5", "80.00%", "0.2500", "19,920", "2", "min", "35",
         "s", "finished"],
        ["tiny_vgg-photos-20260101-120000", "tiny_vgg", "photos", "5/5", "75.00%", "0.5000", "19,920", "2", "min", "35",
         "s", "finished"],
    ]  # fmt: skip
    assert len({line.index("finished" if " finished" in line else "unfinished") for line in out[1:]}) == 1


@pytest.mark.parametrize(
    ("by", "key", "values"),
    [
        ("started", "started", ["20260102-120000", "20260102-120000", "20260101-120000"]),
        ("accuracy", "accuracy", [0.8, 0.75, pytest.approx(0.3)]),
        ("loss", "loss", [0.25, 0.5, 2.0]),
        ("parameters", "parameters", [19920, 19920, None]),
        ("time", "seconds", [93, 155, 155]),
    ],
)
def test_sorted(three, tmp_path, capsys, by, key, values):
    assert main([str(tmp_path), "--json", "--sort", by]) == 0
    assert [run[key] for run in json.loads(capsys.readouterr().out)["runs"]] == values


def test_json(add, tmp_path, capsys):
    run = add("tiny_vgg-photos-20260101-120000", 5, 0.75)
    assert main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "runs": [
            {
                "path": str(run.path),
                "started": "20260101-120000",
                "network": "tiny_vgg",
                "data": "/a/photos",
                "epochs": 5,
                "planned_epochs": 5,
                "accuracy": 0.75,
                "loss": 0.5,
                "parameters": 19920,
                "seconds": 155.0,
                "finished": True,
            }
        ],
        "unreadable": [],
    }


def test_what_cannot_be_read_is_named_and_the_rest_listed(three, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a file").write_text("")
    (tmp_path / "tiny_vgg-photos-20260101-120000" / "result.json").write_text("{")
    (tmp_path / "tiny_vgg-photos-20260102-120000" / "metrics.jsonl").write_text("{\n{}\n")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert f"not listed: {tmp_path}/notes/config.yaml is missing" in err
    assert f"not listed: {tmp_path}/tiny_vgg-photos-20260101-120000/result.json cannot be read" in err
    assert f"not listed: line 1 of {tmp_path}/tiny_vgg-photos-20260102-120000/metrics.jsonl is damaged" in err
    assert err.count("\n") == 3


def test_files_of_other_shapes_do_not_stop_it(tmp_path, capsys):
    run = RunFolder(tmp_path / "x")
    run.path.mkdir()
    run.write_config({"recipe": "none", "epochs": "many", "network": 3})
    run.write_result({"accuracy": "good", "export": []})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["x", "3", "0", "0.0", "s", "finished"]


def test_no_runs(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"


def test_no_folder(tmp_path, capsys):
    assert main([str(tmp_path / "runs")]) == 1
    assert capsys.readouterr().err.startswith(f"convlens runs: {tmp_path}/runs cannot be read (No such file or dir")


def test_it_is_light(tmp_path):
    code = (
        "import sys; from convlens_training.runs_cli import main; main([sys.argv[1]]);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)


def test_as_a_command(three, tmp_path):
    command = [sys.executable, "-m", "convlens.cli", "runs", str(tmp_path), "--sort", "accuracy"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [line.split("-")[2] for line in out.splitlines()[1:3]] == ["20260102", "20260101"]
