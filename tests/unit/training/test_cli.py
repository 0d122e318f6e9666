from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import convlens_training.pipeline
from convlens_training import cli, named
from convlens_training.architectures import NETWORKS
from convlens_training.cli import main
from convlens_training.errors import TrainingError
from convlens_training.jobs import Result
from convlens_training.recipes import RECIPES

VARIANTS = (
    {"precision": "float16", "published": True, "accuracy": 0.95, "reason": "accuracy 95.00%"},
    {"precision": "int8", "published": False, "accuracy": 0.9, "reason": "5.00 points less"},
)
RESULT = Result(
    model="digits",
    version=3,
    path="m/digits/3/model.onnx",
    run="runs/x",
    labels=("a", "ß"),
    parameters=1234,
    training_images=80,
    validation_images=0,
    test_images=20,
    epoch=5,
    test_accuracy=0.95,
    max_logit_difference=1e-6,
    label_agreement=1.0,
    variants=VARIANTS,
    timings=(),
    device="cpu",
    seconds=12.3,
    unreadable=("x: y",),
)


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
        ([], "the following arguments are required: network, --data (or --resume)"),
        (["lecture_cnn"], "required: --data (or --resume)"),
        (["--data", "mnist"], "required: network (or --resume)"),
        (["lecture_cnn", "--data", "mnist", "--epochs", "0"], "--epochs: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--epochs", "two"], "--epochs: 'two' is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--batch-size", "-3"], "--batch-size: -3 is not a whole number, at least"),
        (["lecture_cnn", "--data", "mnist", "--learning-rate", "0"], "--learning-rate: '0' is not a positive number"),
        (["lecture_cnn", "--data", "mnist", "--learning-rate", "nan"], "--learning-rate: 'nan' is not a positive"),
        (["lecture_cnn", "--data", "mnist", "--learning-rate", "inf"], "--learning-rate: 'inf' is not a positive"),
        (["lecture_cnn", "--data", "mnist", "--learning-rate", "x"], "--learning-rate: 'x' is not a positive number"),
        (["lecture_cnn", "--data", "mnist", "--seed", "4294967296"], "--seed: 4294967296 is not a whole number, 0 …"),
        (["lecture_cnn", "--data", "mnist", "--threads", "0"], "--threads: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--devices", "0"], "--devices: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--nodes", "0"], "--nodes: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--patience", "0"], "--patience: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--image-size", "0"], "--image-size: 0 is not a whole number, at least 1"),
        (["lecture_cnn", "--data", "mnist", "--max-drop", "-1"], "--max-drop: '-1' is not a number, at least 0"),
        (["lecture_cnn", "--data", "mnist", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["lecture_cnn", "--data", "mnist", "--recipe", "cake"], "--recipe: invalid choice: 'cake'"),
        (["lecture_cnn", "--data", "mnist", "--mixed-precision", "x"], "--mixed-precision: invalid choice: 'x'"),
        (["lecture_cnn", "--data", "mnist", "--name", "../x"], "--name: '../x' is no model name: letters, digits"),
        (["lecture_cnn", "--data", "mnist", "--name", ".x"], "--name: '.x' is no model name"),
        (["lecture_cnn", "--data", "mnist5k", "--data-root", "d"], "imagenette have one, not --data mnist5k"),
        (["lecture_cnn", "--data", "folder", "--data-root", "d"], "--data-root: only --data mnist, fashion_mnist, "),
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


def test_the_sets_are_those_that_are_loaded():
    assert cli._SETS == named.NAMES
    assert cli._SETS[:-1] == named.DOWNLOADED


class TestJob:
    def test_by_default(self, jobs):
        assert main(["tiny_vgg", "--data", "animals"]) == 0
        (job,) = jobs
        assert job.recipe == RECIPES[NETWORKS["tiny_vgg"].recipe]
        assert (job.network, job.name, str(job.models), str(job.runs)) == ("tiny_vgg", "tiny_vgg", "models", "runs")
        assert (job.data, job.data_root, job.image_size, job.strict) == ("animals", None, None, False)
        assert (job.device, job.devices, job.nodes, job.threads, job.seed) == ("auto", 1, 1, 1, 0)
        assert (job.mixed_precision, job.patience, job.weights, job.resume) == ("auto", None, None, None)
        assert (job.max_drop, job.tensorboard) == (0.2, False)

    def test_every_flag(self, jobs):
        flags = (
            "--data-root d --image-size 32 --strict --recipe plain --epochs 2 --batch-size 7 --learning-rate 1e-4 "
            "--patience 3 --weights w.pth --seed 5 --device cpu --devices 2 --nodes 3 --threads 4 "
            "--mixed-precision on --models m --name n --max-drop 1.5 --runs r --tensorboard --json"
        )
        assert main(["lecture_cnn", "--data", "mnist", *flags.split()]) == 0
        (job,) = jobs
        assert job.recipe == dataclasses.replace(RECIPES["plain"], epochs=2, batch_size=7, learning_rate=1e-4)
        assert (str(job.data_root), job.image_size, job.strict) == ("d", 32, True)
        assert (job.patience, str(job.weights), job.seed) == (3, "w.pth", 5)
        assert (job.device, job.devices, job.nodes, job.threads) == ("cpu", 2, 3, 4)
        assert (job.mixed_precision, str(job.models), job.name) == ("on", "m", "n")
        assert (job.max_drop, str(job.runs), job.tensorboard) == (1.5, "r", True)

    @pytest.mark.parametrize("network", ["resnet18", "torchvision:resnet18"])
    def test_a_network_of_torchvision(self, jobs, network):
        assert main([network, "--data", "animals"]) == 0
        assert main([network, "--data", "animals", "--weights", "w.pth"]) == 0
        assert main([network, "--data", "animals", "--weights", "w.pth", "--recipe", "photos"]) == 0
        assert [job.recipe.name for job in jobs] == ["photos", "fine_tune", "photos"]
        assert {job.name for job in jobs} == {"resnet18"}

    def test_an_unknown_network(self, jobs, capsys):
        assert main(["lenet", "--data", "mnist"]) == 1
        assert "there is no network 'lenet': choose from lecture_cnn" in capsys.readouterr().err
        assert jobs == []


class TestOutput:
    def test_as_text(self, jobs, capsys):
        assert main(["tiny_vgg", "--data", "animals"]) == 0
        assert capsys.readouterr().out == (
            "published digits version 3: m/digits/3/model.onnx\n"
            "accuracy 95.00% on 20 held-out images; 1,234 parameters, trained for 12 s on cpu\n"
            "float16 published too: accuracy 95.00%\n"
            "int8 not published: 5.00 points less\n"
            "run runs/x\n"
            "1 unreadable files were skipped\n"
        )

    def test_as_json(self, jobs, capsys):
        assert main(["tiny_vgg", "--data", "animals", "--json"]) == 0
        text = capsys.readouterr().out
        assert "ß" in text
        assert json.loads(text) == json.loads(json.dumps(dataclasses.asdict(RESULT)))

    def test_of_other_processes_there_is_none(self, monkeypatch, capsys):
        monkeypatch.setattr(convlens_training.pipeline, "run", lambda job: None)
        assert main(["tiny_vgg", "--data", "animals", "--json"]) == 0
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        ("error", "status", "text"),
        [
            (TrainingError("too few images"), 1, "convlens train: too few images\n"),
            (KeyboardInterrupt(), 130, "convlens train: interrupted, nothing was published\n"),
        ],
    )
    def test_of_failures(self, monkeypatch, capsys, error, status, text):
        def run(job):
            raise error

        monkeypatch.setattr(convlens_training.pipeline, "run", run)
        assert main(["tiny_vgg", "--data", "animals"]) == status
        assert capsys.readouterr() == ("", text)
        monkeypatch.setenv("RANK", "2")
        assert main(["tiny_vgg", "--data", "animals"]) == status
        assert capsys.readouterr() == ("", text.replace("train: ", "train: process 2: "))


@pytest.mark.parametrize("package", cli._NEEDED)
def test_a_missing_package(monkeypatch, capsys, jobs, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert main(["tiny_vgg", "--data", "animals"]) == 1
    cure = "server]' (or, for CUDA, 'convlens[server-gpu]'" if package == "onnxruntime" else "training]'"
    text = f"convlens train: needs {package}, which is not installed: pip install 'convlens[{cure}"
    assert capsys.readouterr().err.startswith(text)
    assert jobs == []


def test_help_needs_none_of_them_and_has_every_flag():
    program = (
        "import sys\n"
        "from convlens_training import cli\n"
        "sys.modules.update(dict.fromkeys([*cli._NEEDED, 'numpy', 'PIL']))\n"
        "cli.main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for flag in (*convlens_training.jobs.Job.__dataclass_fields__, "epochs", "batch_size", "learning_rate", "json"):
        assert f"--{flag.replace('_', '-')} " in done.stdout or flag == "network"
    for name in NETWORKS:
        assert f"{name}: " in done.stdout


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "convlens_training"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: convlens train" in done.stderr


class TestNothingIsPublished:
    """Where something is wrong: the reason with its cure, exit status 1, nothing in the repository."""

    @pytest.fixture
    def run(self, tmp_path, capsys):
        def run(*arguments, network="tiny_vgg"):
            before = torch.get_num_threads()
            where = ["--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
            assert main([network, *where, *arguments]) == 1
            assert torch.get_num_threads() == before
            assert not list((tmp_path / "models").rglob("*.onnx"))
            output = capsys.readouterr()
            assert output.out == ""
            assert "Traceback" not in output.err
            return output.err

        return run

    @pytest.fixture
    def images(self, image_folder):
        return str(image_folder({"a": 6, "b": 6}))

    def test_without_a_cuda_device(self, run, images, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "--device cuda: torch finds no CUDA device" in run("--data", images, "--device", "cuda")

    def test_without_data(self, run, tmp_path):
        assert "nowhere is not a folder" in run("--data", str(tmp_path / "nowhere"))
        assert not (tmp_path / "runs").exists()

    def test_with_unreadable_files_where_they_are_refused(self, run, images, tmp_path):
        (Path(images) / "a" / "x.png").touch()
        text = run("--data", images, "--strict")
        assert "1 files cannot be read, which --strict refuses" in text
        assert f"{images}/a/x.png: is no image" in text

    def test_with_a_class_too_small_for_patience(self, run, image_folder):
        images = str(image_folder({"train/a": 3, "train/b": 1, "val/a": 1, "val/b": 1}))
        assert "class 'b' has 1 training images" in run("--data", images, "--patience", "2")

    def test_with_a_size_that_the_network_has_not(self, run, images):
        text = run("--data", images, "--image-size", "32")
        assert "--image-size 32: tiny_vgg takes images of 64 × 64 × 3 only" in text

    def test_with_a_size_too_small_for_the_network(self, run, images):
        text = run("--data", images, "--image-size", "16", network="squeezenet1_1")
        assert "squeezenet1_1 does not take images of 16 × 16 × 3" in text

    def test_with_batches_too_small_for_a_normalisation(self, run, images):
        flags = ["--image-size", "32", "--batch-size", "1"]
        text = run("--data", images, *flags, network="shufflenet_v2_x0_5")
        assert "cannot be trained on 1 images of this size at a time" in text
        assert "give a larger --batch-size or --image-size" in text

    def test_with_weights_of_another_network(self, run, images, tmp_path):
        torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "w.pth")
        assert "w.pth is not of tiny_vgg for" in run("--data", images, "--weights", str(tmp_path / "w.pth"))
        assert not (tmp_path / "runs").exists()

    def test_with_a_learning_rate_that_is_too_high(self, run, images):
        flags = ["--epochs", "3", "--batch-size", "3", "--learning-rate", "1e30"]
        assert "give a --learning-rate lower than 1e+30" in run("--data", images, *flags)

    @pytest.mark.parametrize("folder", ["models", "runs"])
    def test_where_a_file_is_in_the_way(self, run, images, tmp_path, folder):
        (tmp_path / folder).write_text("mine")
        text = run("--data", images, "--epochs", "1")
        assert f"{tmp_path / folder}" in text
        assert "choose another folder" in text or "move it away" in text
        assert (tmp_path / folder).read_text() == "mine"

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
    def test_where_runs_cannot_be_written(self, run, images, tmp_path, monkeypatch, number):
        mkdir = Path.mkdir

        def refused(self, *arguments, **options):
            if "runs" in self.parts:
                raise OSError(number, "refused by the test", str(self))
            mkdir(self, *arguments, **options)

        monkeypatch.setattr(Path, "mkdir", refused)
        text = run("--data", images, "--epochs", "1")
        assert f"{tmp_path}/runs/tiny_vgg-animals-" in text
        assert "cannot be written (refused by the test): make room or change permissions" in text

    @pytest.mark.parametrize("room", [20_000, 50_000, 80_000, 100_000])
    def test_where_there_is_no_room_for_a_checkpoint(self, run, images, tmp_path, room):
        # The system itself refuses larger files.
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            text = run("--data", images, "--epochs", "2")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "checkpoints/last.ckpt cannot be written (" in text
        assert "): make room or change permissions there" in text
        (folder,) = (tmp_path / "runs").iterdir()
        assert list((folder / "checkpoints").iterdir()) == []
