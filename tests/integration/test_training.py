"""From data to a published model, by the command."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from convlens.manifest import METADATA_KEY, Manifest
from convlens_server.catalogue import build_catalogue
from convlens_server.network import load_network
from convlens_training import datasets
from convlens_training.cli import main
from convlens_training.recipes import ImageSize


def manifest_of(path):
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return Manifest.from_json(entries[METADATA_KEY])


@pytest.mark.timeout(300)
def test_digits(tmp_path, capsys):
    command = ["lecture_cnn", "--data", "mnist5k", "--epochs", "1", "--batch-size", "32", "--device", "cpu", "--json"]
    assert main([*command, "--models", str(tmp_path)]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert "epoch 1/1" in output.err
    assert result["test_accuracy"] >= 0.9
    assert result["label_agreement"] == 1
    assert result["max_logit_difference"] < 1e-3
    assert (result["model"], result["version"], result["parameters"]) == ("lecture_cnn", 1, 1_199_882)

    path = tmp_path / "lecture_cnn" / "1" / "model.onnx"
    assert result["path"] == str(path)
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()] == [
        "lecture_cnn/1/model.onnx"
    ]
    manifest = manifest_of(path)
    assert manifest.labels == tuple("0123456789")
    assert manifest.metrics == {"test_accuracy": result["test_accuracy"]}
    assert manifest.input.in_graph
    assert manifest.training["network"] == "lecture_cnn"
    assert manifest.training["data"] == {"name": "mnist5k", "training_images": 4000, "test_images": 1000}
    assert manifest.training["recipe"]["epochs"] == 1
    assert manifest.training["seed"] == 0
    assert set(manifest.training["versions"]) == {"convlens", "torch"}

    held_out = datasets.load("mnist5k", ImageSize(28, 28, 1), None, 0).test
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": held_out.images})
    assert (scores.argmax(1) == held_out.labels).mean() == result["test_accuracy"]
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
    command = ["tiny_vgg", "--data", str(colours), "--models", str(tmp_path / "models")]
    flags = ["--name", "colours", "--epochs", "5", "--batch-size", "4", "--device", "cpu"]
    versions = []
    for version in (1, 2):
        assert main([*command, *flags]) == 0
        output = capsys.readouterr()
        path = tmp_path / "models" / "colours" / str(version) / "model.onnx"
        assert output.out.startswith(f"published colours version {version}: {path}\n")
        assert "accuracy 100.00% on 8 held-out images" in output.out
        assert output.out.endswith("1 unreadable files were skipped\n")
        assert f"skipped, unreadable: {tmp_path}/colours/red/broken.png: " in output.err
        versions.append(path.read_bytes())
    assert versions[0] == versions[1], "the same seed gives the same file"
    manifest = manifest_of(path)
    assert manifest.labels == ("deep blue", "red")
    assert manifest.training["data"]["name"] == "colours"
    assert bytes(tmp_path) not in versions[0]


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda(tmp_path, capsys, colours):
    flags = ["--epochs", "5", "--batch-size", "4", "--device", "cuda", "--json"]
    assert main(["tiny_vgg", "--data", str(colours), "--models", str(tmp_path / "models"), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cuda"
    assert result["test_accuracy"] == 1
