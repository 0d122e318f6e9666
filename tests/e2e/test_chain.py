"""The whole chain, each link as its user starts it: train, export, publish, serve, ask."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import convlens
from convlens_training import datasets
from convlens_training.recipes import ImageSize


def command(*arguments):
    ended = subprocess.run(
        [sys.executable, "-m", "convlens.cli", *arguments], capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def train(models, epochs):
    where = ["--models", str(models), "--runs", str(models.with_name("runs"))]
    return json.loads(command("train", "lecture_cnn", "--data", "mnist5k", "--epochs", str(epochs), *where, "--json"))


@pytest.mark.timeout(600)
def test_train_publish_serve_ask(tmp_path, start, monkeypatch):
    digits = datasets.load("mnist5k", ImageSize(28, 28, 1), None, 0).test
    models = tmp_path / "models"
    first = train(models, 2)
    assert first["version"] == 1

    server = start(models)
    with convlens.Client(f"127.0.0.1:{server.port}") as client:
        results: list[convlens.Classification] = []
        for at in range(0, len(digits.images), 250):
            results += client.classify(list(digits.images[at : at + 250]), model="lecture_cnn", top_k=3)
        right = sum(result.index == label for result, label in zip(results, digits.labels, strict=True))
        assert right / len(results) >= 0.93
        assert right / len(results) == pytest.approx(first["test_accuracy"])
        assert {result.version for result in results} == {1}

        # The same by the stream, as files.
        def files():
            for image in digits.images[:200]:
                buffer = io.BytesIO()
                Image.fromarray(image[..., 0]).save(buffer, "PNG")
                yield buffer.getvalue()

        streamed = [outcome.classification.index for outcome in client.stream(files(), model="lecture_cnn")]
        assert streamed == [result.index for result in results[:200]]

        assert train(models, 1)["version"] == 2
        # The running server serves what it loaded.
        assert client.classify(digits.images[0], model="lecture_cnn").version == 1
    assert server.stop() == 0

    server = start(models)
    address = f"127.0.0.1:{server.port}"
    with convlens.Client(address) as client:
        assert client.classify(digits.images[0], model="lecture_cnn").version == 2
        assert client.classify(digits.images[0], model="lecture_cnn", version=1).version == 1
        [maps] = client.maps(digits.images[0], model="lecture_cnn", layers=["conv_1"])
        assert maps.activation.shape == (32, 26, 26)
        layers = {layer.name: layer.parameters for layer in client.layers("lecture_cnn")}
        assert [count for count in layers.values() if count] == [320, 18_496, 1_179_776, 1_290]

    # And by the command line.
    monkeypatch.setenv("CONVLENS_SERVER", address)
    picture = tmp_path / "digit.png"
    Image.fromarray(digits.images[0][..., 0]).save(picture)
    answer = json.loads(command("classify", str(picture), "--model", "lecture_cnn", "--json"))
    assert answer
    command("maps", str(picture), "--model", "lecture_cnn", "--kinds", "conv", "--output", str(tmp_path / "maps"))
    grids = sorted((tmp_path / "maps").rglob("*.png"))
    assert len(grids) == 2
    assert np.asarray(Image.open(grids[0])).size > 26 * 26 * 32
    listed = json.loads(command("models", "--json"))
    assert len(listed) == 2
    assert server.stop() == 0
