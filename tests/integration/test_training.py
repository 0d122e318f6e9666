"""From data to a published model, by the command."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torchvision import models

from convlens.manifest import METADATA_KEY, Manifest
from convlens_server.catalogue import build_catalogue
from convlens_server.network import load_network
from convlens_training import datasets
from convlens_training.cli import main
from convlens_training.recipes import ImageSize
from support import put


def manifest_of(path):
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return Manifest.from_json(entries[METADATA_KEY])


def train(tmp_path, *arguments):
    """The command, into a repository and a folder of runs of the test's own."""
    return main([*arguments, "--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"), "--device", "cpu"])


def published(tmp_path):
    models = tmp_path / "models"
    return sorted(str(file.relative_to(models)) for file in models.rglob("*") if file.is_file())


@pytest.mark.timeout(300)
def test_digits(tmp_path, capsys):
    command = ["lecture_cnn", "--data", "mnist5k", "--epochs", "1", "--batch-size", "32", "--json"]
    assert train(tmp_path, *command) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert "epoch 1/1" in output.err
    assert "lecture_cnn on mnist5k: 10 classes, 4000 images train, 1000 images held out, 0 files skipped" in output.err
    assert "  7: 400 train, 100 held out\n" in output.err
    assert result["test_accuracy"] >= 0.9
    assert result["label_agreement"] == 1
    assert result["max_logit_difference"] < 1e-3
    assert (result["model"], result["version"], result["parameters"]) == ("lecture_cnn", 1, 1_199_882)

    path = tmp_path / "models" / "lecture_cnn" / "1" / "model.onnx"
    assert result["path"] == str(path)
    variants = [variant["precision"] for variant in result["variants"] if variant["published"]]
    files = ["model.onnx", *(f"model.{precision}.onnx" for precision in variants)]
    files += [f"samples/{digit}.png" for digit in range(10)]
    assert published(tmp_path) == sorted(f"lecture_cnn/1/{file}" for file in files)
    manifest = manifest_of(path)
    assert manifest.labels == tuple("0123456789")
    assert manifest.metrics == {"test_accuracy": result["test_accuracy"]}
    assert manifest.input.in_graph
    assert manifest.training["network"] == "lecture_cnn"
    data = datasets.load("mnist5k", ImageSize(28, 28, 1), None, 0)
    assert manifest.training["data"] == {
        "name": "mnist5k",
        "sha256": data.sha256,
        "training_images": 4000,
        "validation_images": 0,
        "test_images": 1000,
    }
    assert manifest.training["recipe"]["epochs"] == 1
    assert manifest.training["seed"] == 0
    assert {"convlens", "torch"} <= set(manifest.training["versions"])

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": data.test.images})
    assert (scores.argmax(1) == data.test.labels).mean() == result["test_accuracy"]
    catalogue = build_catalogue(load_network(path))
    assert catalogue.parameters == 1_199_882


@pytest.fixture
def colours(tmp_path):
    """A folder of noisy blue and red images."""
    random = np.random.default_rng(0)
    for label in ("deep_blue", "red"):
        (tmp_path / "colours" / label).mkdir(parents=True)
        for n in range(20):
            pixels = random.integers(0, 120, (40, 50, 3))
            pixels[..., 0 if label == "red" else 2] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "colours" / label / f"{n}.png")
    return tmp_path / "colours"


@pytest.mark.timeout(300)
def test_a_folder_of_images(tmp_path, capsys, colours):
    (colours / "red" / "broken.png").write_bytes(b"\x89PNG\r\n")
    (colours / "labels.txt").write_text("red\ndeep_blue\n")
    command = ["tiny_vgg", "--data", str(colours), "--name", "colours", "--epochs", "5", "--batch-size", "4"]
    versions = []
    for version in (1, 2):
        assert train(tmp_path, *command) == 0
        output = capsys.readouterr()
        path = tmp_path / "models" / "colours" / str(version) / "model.onnx"
        assert output.out.startswith(f"published colours version {version}: {path}\n")
        assert "accuracy 100.00% on 8 held-out images" in output.out
        assert output.out.endswith("1 unreadable files were skipped\n")
        assert f"skipped, unreadable: {tmp_path}/colours/red/broken.png: " in output.err
        assert "  red: 16 train, 4 held out\n" in output.err
        versions.append(path.read_bytes())
    assert versions[0] == versions[1], "the same seed gives the same file"
    manifest = manifest_of(path)
    assert manifest.labels == ("red", "deep blue"), "in the order of labels.txt"
    assert manifest.training["data"]["name"] == "colours"
    assert bytes(tmp_path) not in versions[0]


@pytest.mark.timeout(300)
def test_no_room_for_the_model(tmp_path, capsys, colours, monkeypatch):
    fsync = os.fsync

    def full(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(tmp_path / "models"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    put(tmp_path / "models", "tiny_vgg", 1, b"an earlier version")
    monkeypatch.setattr(os, "fsync", full)
    assert train(tmp_path, "tiny_vgg", "--data", str(colours), "--epochs", "1") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"could not be published in {tmp_path}/models/tiny_vgg (No space left on device): make room" in output.err
    assert published(tmp_path) == ["tiny_vgg/1/model.onnx"]
    assert (tmp_path / "models/tiny_vgg/1/model.onnx").read_bytes() == b"an earlier version"


@pytest.mark.timeout(300)
def test_a_network_of_torchvision_that_begins_with_weights(tmp_path, capsys, colours):
    weights = models.squeezenet1_1(weights=None).state_dict()
    torch.save(weights, tmp_path / "squeezenet1_1.pth")
    command = ["squeezenet1_1", "--data", str(colours), "--weights", str(tmp_path / "squeezenet1_1.pth"), "--json"]
    assert train(tmp_path, *command, "--epochs", "1", "--image-size", "40") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["labels"] == ["deep blue", "red"]
    path = tmp_path / "models" / "squeezenet1_1" / "1" / "model.onnx"
    manifest = manifest_of(path)
    assert manifest.training["weights"] == "squeezenet1_1.pth"
    assert manifest.training["recipe"]["name"] == "fine_tune"
    assert (manifest.input.height, manifest.input.mean) == (40, (0.485, 0.456, 0.406))
    catalogue = build_catalogue(load_network(path))
    assert catalogue.parameters == result["parameters"]
    names = [layer.name for layer in catalogue.layers]
    assert {"features.0", "features.3.squeeze", "features.3.expand3x3", "classifier.1", "softmax"} <= set(names)
    assert not [name for name in names if name.startswith("body")]


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda(tmp_path, capsys, colours):
    where = ["--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    flags = ["--epochs", "5", "--batch-size", "4", "--device", "cuda", "--json"]
    assert main(["tiny_vgg", "--data", str(colours), *where, *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cuda"
    assert result["test_accuracy"] == 1
