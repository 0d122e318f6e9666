"""From a trained network to its published files, by the command: what is told, and what goes wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
from PIL import Image

from convlens.manifest import METADATA_KEY, Manifest
from convlens_training import precision, publication, speed
from convlens_training.cli import main
from convlens_training.evaluation import Evaluation
from convlens_training.parity import outputs_of

LABELS = ("blue", "red")


@pytest.fixture
def data(tmp_path):
    """Noisy blue and red images, 20 of each for training and 25 held out: each is 2 points of per cent."""
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 25)):
        for channel, label in ((2, "blue"), (0, "red")):
            folder = tmp_path / "colours" / part / label
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(0, 120, (64, 64, 3))
                pixels[..., channel] += 130
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return tmp_path / "colours"


@pytest.fixture
def train(data, tmp_path, capsys, monkeypatch):
    """Trains for an epoch; gives the status, the result, and what was said."""
    monkeypatch.setattr(speed, "_ROUNDS", 1)

    def train(*arguments):
        command = [
            "tiny_vgg",
            "--data",
            str(data),
            "--models",
            str(tmp_path / "models"),
            "--runs",
            str(tmp_path / "runs"),
        ]
        resumed = "--resume" in arguments
        status = main([*([] if resumed else [*command, "--epochs", "1"]), "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    return train


@pytest.fixture
def fast_int8(monkeypatch):
    """A machine on which int8 is faster than float32, which is beyond Tiny VGG's power."""
    monkeypatch.setattr(speed, "images_per_second", lambda contents, *rest: [100.0, 90.0, 300.0][: len(contents)])


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(content):
    entries = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    return Manifest.from_json(entries[METADATA_KEY])


def test_what_is_published_and_what_is_told_of_it(train, tmp_path, fast_int8):
    status, result, err = train("--max-drop", "100", "--seed", "3")
    assert status == 0, err
    published = files(tmp_path / "models" / "tiny_vgg" / "1")
    models = {"model.onnx", "model.float16.onnx", "model.int8.onnx"}
    assert set(published) == models | {"samples/blue.png", "samples/red.png"}
    run = tmp_path / "runs" / result["run"].rpartition("/")[2]
    assert files(run / "export") == published

    float32 = manifest_of(published["model.onnx"])
    data = float32.training["data"]
    assert (data["name"], data["training_images"], data["validation_images"], data["test_images"]) == (
        "colours",
        40,
        0,
        50,
    )
    assert re.fullmatch("[0-9a-f]{64}", data["sha256"])
    assert float32.training["recipe"]["epochs"] == float32.training["epoch"] == 1
    assert float32.training["recipe"]["name"]
    assert float32.training["seed"] == 3
    commit = float32.training["commit"]
    assert commit is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", commit)
    assert float32.training["export"] == {
        "label_agreement": result["label_agreement"],
        "max_logit_difference": result["max_logit_difference"],
    }
    assert float32.metrics == {"test_accuracy": result["test_accuracy"]}
    for variant in result["variants"]:
        name = variant["precision"]
        manifest = manifest_of(published[f"model.{name}.onnx"])
        assert manifest.precision == name
        assert manifest.metrics == {"test_accuracy": variant["accuracy"]}
        assert manifest.training["export"]["max_logit_difference"] == variant["max_logit_difference"] > 0
        assert {**manifest.training, "export": None} == {**float32.training, "export": None}
        assert (variant["published"], variant["bytes"]) == (True, len(published[f"model.{name}.onnx"]))
    assert [line["int8"] for line in result["timings"]] == [300.0] * len(result["timings"])

    evaluation = Evaluation.load(run / "evaluation.npz")
    assert evaluation.accuracy == result["test_accuracy"]
    text = (run / "report.md").read_text()
    assert "[export](export/)" in text
    assert "| opset | 18 |" in text
    assert "| ir version | 8 |" in text
    assert json.loads((run / "result.json").read_text())["export"]["variants"] == result["variants"]


def test_a_quantiser_that_fails_and_an_int8_that_is_slower_do_not_lose_the_model(train, tmp_path, monkeypatch):
    def fails(model):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(precision, "to_float16", fails)
    monkeypatch.setattr(speed, "images_per_second", lambda contents, *rest: [100.0, 99.0])
    status, result, err = train("--max-drop", "100")
    assert status == 0, err
    published = {file for file in files(tmp_path / "models") if file.endswith(".onnx")}
    assert published == {"tiny_vgg/1/model.onnx"}
    float16, int8 = result["variants"]
    assert (float16["published"], float16["accuracy"]) == (False, None)
    assert (int8["published"], int8["images_per_second"]) == (False, 99.0)
    [run] = (tmp_path / "runs").iterdir()
    text = (run / "report.md").read_text()
    for said in (err, text):
        assert "cannot make it: no such operator" in said
        assert "slower than float32 on this machine: 0.99 times as fast (batch 1, 1 thread)" in said
    assert "| float16 | no | – | – | – | – | – | onnxruntime " in text
    assert files(run / "export") == files(tmp_path / "models" / "tiny_vgg" / "1")


def test_variants_that_lose_too_much_are_refused_and_the_model_published(train, tmp_path, monkeypatch, fast_int8):
    """By an int8 that knows one class only."""

    def stubborn(model, images):
        made = onnx.ModelProto.FromString(model.SerializeToString())
        bias = next(tensor for tensor in made.graph.initializer if tensor.name == "output.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.array([1e6, 0], np.float32), "output.bias"))
        return made

    monkeypatch.setattr(precision, "to_int8", stubborn)
    status, result, err = train("--epochs", "5", "--batch-size", "4")
    assert status == 0
    assert result["test_accuracy"] > 0.52
    assert "model.int8.onnx" not in {path.name for path in (tmp_path / "models" / "tiny_vgg" / "1").iterdir()}
    drop = 100 * (result["test_accuracy"] - 0.5)
    assert f"int8: not published: accuracy 50.00%, float32 {result['test_accuracy']:.2%}: {drop:.2f} points less" in err


def test_an_interrupted_publication_publishes_nothing_and_is_gone_on_with(train, data, tmp_path, monkeypatch):
    """A full disk, then a full stop, then the rest: the trained network is not lost, and version 1 not touched."""
    old = tmp_path / "models" / "tiny_vgg" / "1" / "model.onnx"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    write = publication._write

    def full(path, content):
        write(path, content[:1000])
        raise OSError(28, "No space left on device")

    def stopped(path, content):
        write(path, content[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(publication, "_write", full)
    status, result, err = train()
    assert (status, result) == (1, None)
    assert f"the model could not be published in {tmp_path}/models/tiny_vgg (No space left on device): make room" in err
    assert files(tmp_path / "models") == {"tiny_vgg/1/model.onnx": b"old"}
    [run] = (tmp_path / "runs").iterdir()

    monkeypatch.setattr(publication, "_write", stopped)
    status, result, err = train("--resume", run)
    assert (status, result) == (130, None)
    assert files(tmp_path / "models") == {"tiny_vgg/1/model.onnx": b"old"}

    monkeypatch.setattr(publication, "_write", write)
    status, result, err = train("--resume", run)
    assert status == 0, err
    assert result["version"] == 2
    assert old.read_bytes() == b"old"
    assert files(tmp_path / "models" / "tiny_vgg" / "2") == files(run / "export")
    content = (tmp_path / "models" / "tiny_vgg" / "2" / "model.onnx").read_bytes()
    evaluation = Evaluation.load(run / "evaluation.npz")
    images = np.stack([
        np.asarray(Image.open(data / "test" / label / f"{n}.png"))
        for label in LABELS
        for n in sorted(map(str, range(25)))
    ])  # fmt: skip
    _, logits = outputs_of(onnx.load_from_string(content), images, 1)
    np.testing.assert_allclose(np.sort(logits, 0), np.sort(evaluation.logits, 0), atol=1e-5)
