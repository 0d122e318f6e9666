from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from integration.v2.asking import Asked
from support import SIDE, TRANSPORTS, WEIGHTS, Failure, conv_model, linear_model, put, serving


def native_model() -> onnx.ModelProto:
    """Takes uint8 8 × 8 grey images as our own networks do, normalises them itself, and gives scores."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Div", ["floats", "range"], ["x"], "normalise"),
            helper.make_node("Flatten", ["x"], ["flat"], "flatten"),
            helper.make_node("MatMul", ["flat", "w"], ["logits_of_it"], "output"),
            helper.make_node("Softmax", ["logits_of_it"], ["scores"], "softmax", axis=-1),
        ],
        "native",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(np.float32(255), "range")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def half_model() -> onnx.ModelProto:
    """As linear_model, in float16."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"], "flatten"),
            helper.make_node("MatMul", ["flat", "w"], ["y"], "output"),
        ],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 16])],
        [numpy_helper.from_array(WEIGHTS.astype(np.float16), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def log_model() -> onnx.ModelProto:
    """As linear_model, with the logarithm of its scores as output; most scores are too small for a float32."""
    model = linear_model(WEIGHTS * 20)
    model.graph.node.append(helper.make_node("LogSoftmax", ["y"], ["log_scores"], "log_softmax", axis=-1))
    model.graph.output[0].name = "log_scores"
    return model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v2")
    for number in (1, 2):
        put(folder, "linear", number, linear_model())
    put(folder, "conv", 1, conv_model())
    put(folder, "native", 3, native_model())
    put(folder, "half", 1, half_model())
    put(folder, "log", 1, log_model())
    put(folder, "broken", 1, b"not an ONNX file")
    return folder


@pytest.fixture(scope="session", params=TRANSPORTS)
def server(request: pytest.FixtureRequest, models: Path) -> Iterator[Asked]:
    with serving(models, transport=request.param, allow_shared_memory=True, max_images=64) as served:
        served.__class__ = Asked
        yield served  # type: ignore[misc]


@pytest.fixture(scope="session")
def failing() -> Callable[[Callable[[], Any]], Failure]:
    def failing(call: Callable[[], Any]) -> Failure:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        failure = Failure(caught.value)
        assert failure.status.code == failure.code.value[0]
        assert failure.status.message == failure.text
        assert failure.reason
        return failure

    return failing
