from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

import convlens_training.pipeline
from convlens_training.cli import main
from convlens_training.errors import TrainingError
from convlens_training.pipeline import Result
from convlens_training.recipes import NETWORKS

RESULT = Result("digits", 3, "m/digits/3/model.onnx", ("a", "b"), 1234, 80, 20, 0.95, 1e-6, 1.0, "cpu", 12.3, ("x: y",))


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that would have been run."""
    jobs = []

    def run(job):
        jobs.append(job)
        return RESULT

    monkeypatch.setattr(convlens_training.pipeline, "run", run)
    return jobs


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: network, --data"),
        (["vgg", "--data", "mnist"], "invalid choice: 'vgg'"),
        (["lecture_cnn"], "required: --data"),
        (["lecture_cnn", "--data", "mnist", "--epochs", "0"], "--epochs: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--epochs", "two"], "--epochs: 'two' is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--batch-size", "-3"], "--batch-size: -3 is not a whole number, at least"),
        (["lecture_cnn", "--data", "mnist", "--learning-rate", "0"], "--learning-rate: '0' is not a positive number"),
        (["lecture_cnn", "--data", "mnist", "--learning-rate", "nan"], "--learning-rate: 'nan' is not a positive"),
        (["lecture_cnn", "--data", "mnist", "--learning-rate", "x"], "--learning-rate: 'x' is not a positive number"),
        (["lecture_cnn", "--data", "mnist", "--seed", "4294967296"], "--seed: 4294967296 is not a whole number, 0 …"),
        (["lecture_cnn", "--data", "mnist", "--threads", "0"], "--threads: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["lecture_cnn", "--data", "mnist", "--name", "../x"], "--name: '../x' is no model name: letters, digits"),
        (["lecture_cnn", "--data", "mnist", "--name", ".x"], "--name: '.x' is no model name"),
        (
            ["lecture_cnn", "--data", "mnist5k", "--data-root", "d"],
            "--data-root: only --data mnist has one, not --data",
        ),
        (["lecture_cnn", "--data", "mnist", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
    ],
)
def test_wrong_usage(jobs, capsys, arguments, text):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert text in output.err
    assert output.out == ""
    assert jobs == []


def test_the_recipe_unless_flags_say_otherwise(jobs):
    assert main(["tiny_vgg", "--data", "animals"]) == 0
    flags = "--epochs 2 --batch-size 7 --learning-rate 1e-4 --seed 5 --threads 2 --device cpu --models m --name n"
    assert main(["lecture_cnn", "--data", "mnist", "--data-root", "d", *flags.split()]) == 0
    plain, changed = jobs
    assert plain.recipe == NETWORKS["tiny_vgg"].recipe
    assert (plain.name, str(plain.models), plain.seed, plain.threads) == ("tiny_vgg", "models", 0, 1)
    assert (plain.data, plain.data_root, plain.device) == ("animals", None, "auto")
    lecture = NETWORKS["lecture_cnn"].recipe
    assert changed.recipe == dataclasses.replace(lecture, epochs=2, batch_size=7, learning_rate=1e-4)
    assert (changed.name, str(changed.models), str(changed.data_root)) == ("n", "m", "d")
    assert (changed.seed, changed.threads, changed.device) == (5, 2, "cpu")


def test_the_result_as_text(jobs, capsys):
    assert main(["tiny_vgg", "--data", "animals"]) == 0
    assert capsys.readouterr().out == (
        "published digits version 3: m/digits/3/model.onnx\n"
        "accuracy 95.00% on 20 held-out images; 1,234 parameters, trained for 12 s on cpu\n"
        "1 unreadable files were skipped\n"
    )


def test_the_result_as_json(jobs, capsys):
    assert main(["tiny_vgg", "--data", "animals", "--json"]) == 0
    expected = {**dataclasses.asdict(RESULT), "labels": ["a", "b"], "unreadable": ["x: y"]}
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (TrainingError("too few images"), 1, "convlens train: too few images\n"),
        (KeyboardInterrupt(), 130, "convlens train: interrupted, nothing was published\n"),
    ],
)
def test_failures(monkeypatch, capsys, error, status, text):
    def run(job):
        raise error

    monkeypatch.setattr(convlens_training.pipeline, "run", run)
    assert main(["tiny_vgg", "--data", "animals"]) == status
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize(
    ("package", "cure"),
    [("torch", "pip install 'convlens[training]'"), ("onnxruntime", "pip install 'convlens[server]' (or, for CUDA, ")],
)
def test_a_missing_package(monkeypatch, capsys, jobs, package, cure):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert main(["tiny_vgg", "--data", "animals"]) == 1
    assert f"needs {package}, which is not installed: {cure}" in capsys.readouterr().err
    assert jobs == []


def test_help_needs_no_torch():
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'onnx', 'onnxruntime', 'mlxtend', 'tqdm')))\n"
        "from convlens_training.cli import main\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--learning-rate" in done.stdout


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "convlens_training"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: convlens train" in done.stderr


class TestNothingIsPublished:
    def run(self, tmp_path, capsys, *arguments):
        before = torch.get_num_threads()
        status = main(["tiny_vgg", "--models", str(tmp_path / "models"), *arguments])
        assert status == 1
        assert torch.get_num_threads() == before
        assert not list((tmp_path / "models").rglob("*.onnx"))
        output = capsys.readouterr()
        assert output.out == ""
        return output.err

    def test_without_a_cuda_device(self, tmp_path, capsys, image_folder, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        path = str(image_folder({"a": 2, "b": 2}))
        text = self.run(tmp_path, capsys, "--data", path, "--device", "cuda")
        assert "--device cuda: torch finds no CUDA device" in text

    def test_without_data(self, tmp_path, capsys):
        assert "nowhere is not a folder" in self.run(tmp_path, capsys, "--data", str(tmp_path / "nowhere"))

    def test_with_a_learning_rate_that_is_too_high(self, tmp_path, capsys, image_folder):
        path = str(image_folder({"a": 6, "b": 6}))
        flags = ["--epochs", "3", "--batch-size", "3", "--learning-rate", "1e30", "--device", "cpu"]
        text = self.run(tmp_path, capsys, "--data", path, *flags)
        assert "give a --learning-rate lower than 1e+30" in text

    def test_where_a_file_is_in_the_way(self, tmp_path, capsys):
        (tmp_path / "models").touch()
        assert "models is not a folder" in self.run(tmp_path, capsys, "--data", "mnist5k")
