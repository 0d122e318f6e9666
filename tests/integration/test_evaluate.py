"""`convlens evaluate` beside a server as users start it: 1,000 digits, through it and straight through onnxruntime."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from convlens import Client
from convlens.cli import main
from convlens_training import datasets, precision
from convlens_training.evaluation import Evaluation
from convlens_training.recipes import ImageSize
from support import Process

SHIPPED = Path(__file__).parents[2] / "models" / "lecture_cnn" / "1" / "model.onnx"


@pytest.fixture(scope="module")
def held_out():
    return datasets.load("mnist5k", ImageSize(28, 28, 1), None, 0).test


@pytest.fixture(scope="module")
def models(tmp_path_factory, held_out):
    """lecture_cnn in float32, and in an int8 that is off enough to be told apart."""
    folder = tmp_path_factory.mktemp("models") / "lecture_cnn" / "1"
    folder.mkdir(parents=True)
    model = onnx.load(SHIPPED)
    onnx.save(model, folder / "model.onnx")
    # Calibrated on images that are too dark: what is brighter is cut off.
    int8 = precision.to_int8(model, held_out.images[:64] // 2)
    onnx.helper.set_model_props(int8, {entry.key: entry.value for entry in model.metadata_props})
    onnx.save(int8, folder / "model.int8.onnx")
    return folder.parents[1]


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Runs the command; gives the status, what it printed, and the evaluation that it wrote."""

    def evaluate(*arguments, model="lecture_cnn"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        command = ["evaluate", "--model", model, "--data", "mnist5k", "--json", "--output", str(folder)]
        status = main([*command, *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err, folder

    return evaluate


@pytest.mark.parametrize(("wanted", "file"), [("float32", "model.onnx"), ("int8", "model.int8.onnx")])
def test_a_server_and_onnxruntime_agree_to_the_last_image(models, held_out, evaluate, wanted, file):
    server = Process(models, "--precision", wanted, "--threads", "2")
    try:
        status, there, err, served = evaluate("--server", f"127.0.0.1:{server.port}")
    finally:
        assert server.stop() == 0
    assert status == 0, err
    status, here, err, local = evaluate("--models", models, "--precision", wanted)
    assert status == 0, err
    from_server, from_here = (Evaluation.load(folder / "evaluation.npz") for folder in (served, local))
    # And as nobody of ours computes it.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = models / "lecture_cnn" / "1" / file
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    [scores] = session.run(None, {"image": held_out.images})
    for evaluation in (from_server, from_here):
        np.testing.assert_array_equal(evaluation.truth, held_out.labels)
        np.testing.assert_array_equal(evaluation.answers, scores.argmax(1))
        np.testing.assert_allclose(evaluation.scores, scores, atol=1e-5)
    np.testing.assert_allclose(from_server.logits, from_here.logits, atol=1e-4)
    assert there["accuracy"] == here["accuracy"] == (scores.argmax(1) == held_out.labels).mean()
    assert there["confusion"] == here["confusion"]
    assert there["precision"] == here["precision"] == wanted
    # The int8 file is really another one.
    assert (here["accuracy"] > 0.99) == (wanted == "float32")
    texts = [(folder / "report.md").read_text().partition("## Classes")[2] for folder in (served, local)]
    assert texts[0] == texts[1] != ""


def test_a_server_that_is_killed_while_it_is_asked(models, evaluate, monkeypatch):
    server = Process(models)
    stream = Client.stream

    def watched(self, images, **options):
        for number, outcome in enumerate(stream(self, images, **options)):
            if number == 100:
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()
            yield outcome

    monkeypatch.setattr(Client, "stream", watched)
    try:
        status, answer, err, folder = evaluate("--server", f"127.0.0.1:{server.port}")
    finally:
        server.stop(signal.SIGKILL)
    assert (status, answer) == (1, None)
    assert f"convlens evaluate: cannot reach 127.0.0.1:{server.port}" in err
    assert list(folder.iterdir()) == [], "half of an evaluation is none"
