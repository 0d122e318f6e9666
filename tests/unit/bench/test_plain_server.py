"""The server written by hand answers what the network says, and an answer that is wrong is noticed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import plain_server
from answers import AnswerError, Questions
from in_process import CHECKED_IMAGES, describe, measure
from processes import ProcessError, accepts, serving
from support import free_port


@pytest.fixture
def model(tmp_path) -> Path:
    weights = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32) / 255
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["values"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights"], ["logits"], "output"),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 1])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, [numpy_helper.from_array(weights, "weights")])
    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_answers_are_the_networks_own(model):
    port = free_port()
    described = describe(model)
    command = [sys.executable, plain_server.__file__, "--model", "tiny", "--file", str(model), "--port", str(port)]
    with serving(command, lambda: accepts(port)) as server:
        sizes = Questions("tiny", described["shape"], described["scores"]).check(port)
        assert set(sizes) == {1, CHECKED_IMAGES}
        assert 0 < server.memory("VmRSS") <= server.memory("VmHWM")
        assert server.cpu_seconds() > 0

        others = np.roll(described["scores"], 1, axis=0).tolist()
        with pytest.raises(AnswerError, match="but the network says"):
            Questions("tiny", described["shape"], others).check(port)
        with pytest.raises(AnswerError, match="images must be"):
            Questions("tiny", (4, 2, 1), described["scores"]).check(port)
    assert not accepts(port)


def test_a_server_that_ends_is_an_error_with_what_it_printed():
    with (
        pytest.raises(ProcessError, match=r"ended with code 3: .*no such thing"),
        serving([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"], lambda: False),
    ):
        pass


def test_raw_runs(model):
    runs = measure(model, 0.001)
    assert {run["batch"] for run in runs} == {1, 8, 16, 32}
    assert all(run["images_per_second"] > 0 and run["p50_ms"] > 0 for run in runs)
