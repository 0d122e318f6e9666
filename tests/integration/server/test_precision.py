"""`--precision`: which of a version's files is served, and what is told of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from convlens import Client
from convlens.v1 import convlens_pb2 as pb
from convlens_training import precision
from support import Process, linear_model, put, serving

SHIPPED = Path(__file__).parents[3] / "models" / "lecture_cnn" / "1" / "model.onnx"


@pytest.fixture(scope="module")
def images():
    """Bright strokes on black."""
    random = np.random.default_rng(3)
    images = np.zeros((40, 28, 28, 1), np.uint8)
    for image in images:
        top, left = random.integers(4, 12, 2)
        image[top : top + 14, left : left + 3] = image[top + 5 : top + 8, left : left + 11] = random.integers(120, 256)
    return images


@pytest.fixture(scope="module")
def models(tmp_path_factory, images):
    """digits in all three precisions, linear in float32 only, and what a killed publication left."""
    folder = tmp_path_factory.mktemp("models")
    original = onnx.load(SHIPPED)
    files = {"model.onnx": original}
    for name, made in (
        ("model.float16.onnx", precision.to_float16(original)),
        ("model.int8.onnx", precision.to_int8(original, images)),
    ):
        # As of a file from elsewhere, whose manifest does not tell.
        onnx.helper.set_model_props(made, {original.metadata_props[0].key: original.metadata_props[0].value})
        files[name] = made
    for version in ("digits/1", ".publish-digits-0123456789abcdef"):
        (folder / version).mkdir(parents=True)
        for name, model in files.items():
            onnx.save(model, folder / version / name)
    put(folder, "linear", 1, linear_model())
    return folder


def answers_of(file: Path, images: np.ndarray) -> np.ndarray:
    """The scores, by onnxruntime alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


@pytest.mark.parametrize("wanted", ["float32", "float16", "int8"])
def test_the_file_of_that_precision_is_served(models, images, wanted, caplog):
    file = models / "digits" / "1" / ("model.onnx" if wanted == "float32" else f"model.{wanted}.onnx")
    expected = answers_of(file, images)
    with caplog.at_level(logging.INFO, "convlens_server"), serving(models, precision=wanted) as served:
        with Client(served.address) as client:
            scores = np.stack([each.scores for each in client.classify(images, model="digits", scores=True)])
            listed = {each.model: each.manifest["precision"] for each in map(client.model, ("digits", "linear"))}
            assert [(each.model, each.version) for each in client.models()] == [("digits", 1), ("linear", 1)]
        manifest = json.loads(served.stub.GetModel(pb.GetModelRequest(model="digits")).manifest_json)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    others = {"model.onnx", "model.float16.onnx", "model.int8.onnx"} - {file.name}
    for other in others:
        assert np.abs(scores - answers_of(file.with_name(other), images)).max() > 1e-5, (
            "told apart from the other files"
        )
    assert manifest["precision"] == wanted
    assert listed == {"digits": wanted, "linear": "float32"}
    fallen_back = f"version 1 of model linear has no model.{wanted}.onnx: it is served as float32"
    assert caplog.messages.count(fallen_back) == (wanted != "float32")
    assert f"version 1 of model digits is ready ({wanted})" in caplog.messages
    assert "version 1 of model linear is ready (float32)" in caplog.messages


@pytest.mark.parametrize("wanted", ["float16", "int8"])
def test_layers_and_feature_maps_are_those_of_the_network(models, images, wanted):
    seen = {}
    for each in ("float32", wanted):
        with serving(models, precision=each) as served, Client(served.address) as client:
            maps = client.maps(images[:2], model="digits", all_layers=True)
            seen[each] = client.model("digits").layers, maps
    assert seen[wanted][0] == seen["float32"][0]
    assert [layer.name for layer in seen[wanted][0]][:3] == ["conv_1", "relu_1", "conv_2"]
    for expected, own in zip(seen["float32"][1], seen[wanted][1], strict=True):
        assert (own.layer, own.activation.dtype) == (expected.layer, np.float32)
        limit = {"float16": 3e-3, "int8": 0.1}[wanted] * np.abs(expected.activation).max()
        np.testing.assert_allclose(own.activation, expected.activation, rtol=0, atol=limit, err_msg=own.layer)


def test_the_command_with_a_process_of_its_own(models, images):
    process = Process(models, "--precision", "int8", "--threads", "1")
    try:
        with Client(f"127.0.0.1:{process.port}") as client:
            [answer] = client.classify(images[:1], model="digits", scores=True)
    finally:
        assert process.stop() == 0
    [expected] = answers_of(models / "digits" / "1" / "model.int8.onnx", images[:1])
    np.testing.assert_allclose(answer.scores, expected, atol=1e-6)
    said = [json.loads(line)["message"] for line in process.lines]
    assert "version 1 of model linear has no model.int8.onnx: it is served as float32" in said


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--precision", "int4"], {}), ([], {"CONVLENS_PRECISION": "int4"})]
)
def test_an_unknown_precision_is_wrong_usage(models, arguments, environment):
    command = [sys.executable, "-m", "convlens.cli", "serve", "--models", str(models), *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "argument --precision: invalid choice: 'int4' (choose from" in done.stderr


def test_a_broken_variant_is_told_and_not_replaced_in_silence(tmp_path, models):
    """Whoever asks for int8 measures int8: a damaged file is an error of that version, not a reason for float32."""
    put(tmp_path, "linear", 1, linear_model())
    put(tmp_path, "other", 1, linear_model())
    (tmp_path / "linear" / "1" / "model.int8.onnx").write_bytes(b"no model")
    with serving(tmp_path, precision="int8") as served, Client(served.address) as client:
        listed = {each.model: each for each in client.models()}
        assert not listed["linear"].ready
        assert listed["linear"].error.startswith("model.int8.onnx: not an ONNX model")
        assert str(tmp_path) not in listed["linear"].error
        assert listed["other"].ready
