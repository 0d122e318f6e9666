"""GetKernels: the weights and biases of a layer."""

from __future__ import annotations

import contextlib
import json
import urllib.request

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from convlens.v1 import convlens_pb2 as pb
from support import put, serving


def fetch(server, **fields):
    """The first message of an answer, the weights, and the bias; chunks joined and checked."""
    messages = list(server.stub.GetKernels(pb.GetKernelsRequest(**fields), timeout=30))
    first, content = messages[0], b""
    for message in messages:
        assert message.layer == first.layer
        assert message.byte_offset == len(content)
        assert len(message.data) <= 2**20
        content += message.data
    assert len(content) == first.total_bytes
    shape = tuple(first.shape)
    if first.value_type == pb.VALUE_TYPE_UINT8:
        scale, offset = (
            np.array(part, np.float32).reshape(-1, *[1] * (len(shape) - 1)) for part in (first.scale, first.offset)
        )
        return first, offset + scale * np.frombuffer(content, np.uint8).reshape(shape), np.array(first.bias)
    dtype = {pb.VALUE_TYPE_FLOAT32: "<f4", pb.VALUE_TYPE_FLOAT16: "<f2"}[first.value_type]
    return first, np.frombuffer(content, dtype).reshape(shape), np.array(first.bias)


class Net:
    """A network with a layer of every kind that has trained values, and those."""

    def __init__(self) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.nodes = []
        self.random = np.random.default_rng(5)

    def weights(self, *shape, dtype=np.float32):
        name = f"w{len(self.values)}"
        self.values[name] = self.random.uniform(0.5, 1.5, shape).astype(dtype)
        return name

    def node(self, op_type, *inputs, name="", **attributes):
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name, **attributes))
        return output

    def model(self, output, shape, classes, opset=21):
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", classes])],
            [numpy_helper.from_array(values, name) for name, values in self.values.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def everything():
    """The network, and by layer what its kernels must be: kind, weights, bias."""
    net, expected = Net(), {}
    values = net.values
    w, b = net.weights(6, 1, 3, 2), net.weights(6)
    t = net.node("Conv", "x", w, b, name="grouped", group=3)
    expected["grouped"] = ("conv", values[w], values[b])
    w = net.weights(6, 2, 3, 3)
    t = net.node("ConvTranspose", t, w, name="up", group=2)
    # Output channel 3 is the second of the second group: input channels 3, 4, 5.
    expected["up"] = (
        "conv_transpose",
        np.stack([values[w][3 * (n // 2) : 3 * (n // 2) + 3, n % 2] for n in range(4)]),
        (),
    )
    w, b = net.weights(4), net.weights(4)
    t = net.node("BatchNormalization", t, w, b, net.weights(4), net.weights(4), name="norm")
    expected["norm"] = ("batch_norm", values[w], values[b])
    w = net.weights(4, 1, 1)
    t = net.node("PRelu", t, w, name="slopes")
    expected["slopes"] = ("prelu", values[w].ravel(), ())
    w = net.weights(1, 4, 1, 1)
    t = net.node("Mul", t, w, name="scaled")
    expected["scaled"] = ("mul", values[w].ravel(), ())
    t = net.node("Flatten", net.node("GlobalMaxPool", t, name="pool"), name="flatten")
    w, b = net.weights(4, 5), net.weights(5)
    t = net.node("Add", net.node("MatMul", t, w, name="product"), b)
    expected["product"] = ("dense", values[w].T, values[b])
    w, b = net.weights(5), net.weights(5)
    t = net.node("LayerNormalization", t, w, b, name="layer_norm")
    expected["layer_norm"] = ("layer_norm", values[w], values[b])
    w, b = net.weights(5, 3), net.weights(1, 3)
    t = net.node("Gemm", t, w, b, name="output", alpha=0.5, beta=2.0)
    expected["output"] = ("dense", 0.5 * values[w].T, 2 * values[b].ravel())
    return net.model(t, (3, 7, 7), 3), expected


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    model, expected = everything()
    put(folder, "net", 1, model)
    with serving(folder) as server:
        yield server, expected


def test_every_kind_that_has_them(kernels):
    server, expected = kernels
    for layer, (kind, weights, bias) in expected.items():
        first, own, own_bias = fetch(server, layer=layer)
        assert (first.kind, first.model, first.version) == (kind, "net", 1)
        np.testing.assert_array_equal(own, weights, err_msg=layer)
        np.testing.assert_array_equal(own_bias, np.asarray(bias, np.float32), err_msg=layer)
        assert first.value_type == pb.VALUE_TYPE_FLOAT32
        assert first.groups == {"grouped": 3, "up": 2}.get(layer, 0)


def test_channels_in_the_order_asked_for(kernels):
    server, expected = kernels
    for layer in ("grouped", "up", "product", "norm"):
        _, weights, bias = expected[layer]
        first, own, own_bias = fetch(server, layer=layer, channels=[3, 0])
        assert list(first.channels) == [3, 0]
        np.testing.assert_array_equal(own, weights[[3, 0]])
        np.testing.assert_array_equal(own_bias, np.asarray(bias, np.float32)[[3, 0]] if len(bias) else [])


@pytest.mark.parametrize("value_type", [pb.VALUE_TYPE_FLOAT16, pb.VALUE_TYPE_UINT8])
def test_value_types(kernels, value_type):
    server, expected = kernels
    for layer, (_, weights, _) in expected.items():
        first, own, _ = fetch(server, layer=layer, value_type=value_type)
        if value_type == pb.VALUE_TYPE_UINT8:
            assert len(first.scale) == len(first.offset) == len(weights)
            bound = np.array(first.scale).reshape(-1, *[1] * (weights.ndim - 1)) * 0.501 + 1e-7
        else:
            bound = 2**-11 * np.abs(weights)
        assert (np.abs(own - weights) <= bound).all(), layer


def test_weights_larger_than_a_message_come_in_chunks(serve, tmp_path):
    net = Net()
    w = net.weights(64 * 64, 200)
    put(tmp_path, "wide", 1, net.model(net.node("MatMul", net.node("Flatten", "x"), w, name="dense"), (1, 64, 64), 200))
    with serve(tmp_path) as server:
        first, own, _ = fetch(server, layer="dense")
        assert first.total_bytes == 4 * 64 * 64 * 200 > 3 * 2**20
        np.testing.assert_array_equal(own, net.values[w].T)


def test_weights_of_a_quantised_and_of_a_float16_file_are_those_it_has(serve):
    from pathlib import Path

    models = Path(__file__).parents[3] / "models"
    with serve(models) as server:
        _, exact, bias = fetch(server, model="tiny_vgg_bn", layer="conv_1_1")
    for precision, bound in (("float16", 2**-11), ("int8", 1 / 127)):
        with serve(models, precision=precision) as server:
            _, own, own_bias = fetch(server, model="tiny_vgg_bn", layer="conv_1_1")
        assert own.shape == exact.shape
        largest = np.abs(exact).max((1, 2, 3), keepdims=True)
        assert (np.abs(own - exact) <= bound * largest + 1e-6).all()
        assert not np.array_equal(own, exact)
        np.testing.assert_allclose(own_bias, bias, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("fields", "code", "reason", "text"),
    [
        ({"layer": "groupd"}, "NOT_FOUND", "LAYER_NOT_FOUND", "did you mean grouped"),
        ({"layer": "pool"}, "FAILED_PRECONDITION", "NO_KERNELS", "with trained values are grouped, up, norm"),
        ({"layer": "up", "channels": [4]}, "NOT_FOUND", "CHANNEL_NOT_FOUND", "it has 4, counted from 0"),
        ({"layer": "up", "channels": [1, 1]}, "INVALID_ARGUMENT", "REPEATED_CHANNEL", "name each once"),
        ({"layer": "up", "value_type": 9}, "INVALID_ARGUMENT", "UNKNOWN_VALUE_TYPE", "VALUE_TYPE_UINT8"),
        ({"layer": "up", "model": "nett"}, "NOT_FOUND", "MODEL_NOT_FOUND", "did you mean net"),
    ],
)
def test_errors(kernels, failing, fields, code, reason, text):
    server, _ = kernels
    failure = failing(lambda: list(server.stub.GetKernels(pb.GetKernelsRequest(**fields), timeout=30)))
    assert (failure.code.name, failure.reason) == (code, reason)
    assert text in failure.text


def test_more_bytes_than_the_server_gives(serve, failing, tmp_path):
    model, _ = everything()
    put(tmp_path, "net", 1, model)
    with serve(tmp_path, max_feature_map_bytes=100) as server:
        request = pb.GetKernelsRequest(layer="grouped")
        failure = failing(lambda: list(server.stub.GetKernels(request, timeout=30)))
        assert (failure.code.name, failure.reason) == ("INVALID_ARGUMENT", "TOO_MANY_BYTES")
        assert fetch(server, layer="grouped", channels=[2])[0].total_bytes == 24


def test_a_caller_that_leaves_frees_what_it_held(serve, tmp_path):
    """Room for four requests' weights at once: many that leave in the middle must not use it up."""
    net = Net()
    # More than the 4 MiB that are sent before the caller has to read.
    w = net.weights(64 * 64, 600)
    put(tmp_path, "wide", 1, net.model(net.node("MatMul", net.node("Flatten", "x"), w, name="dense"), (1, 64, 64), 600))
    with serve(tmp_path, max_feature_map_bytes=4 * 64 * 64 * 600) as server:
        request = pb.GetKernelsRequest(layer="dense")
        for n in range(12):
            call = server.stub.GetKernels(request, timeout=30)
            if n % 2:
                with contextlib.suppress(grpc.RpcError):
                    next(iter(call))
            call.cancel()
            with contextlib.suppress(grpc.RpcError):
                list(call)
        served = 0
        while served < 5:
            # What was left behind goes when its thread comes to it; until then the server refuses.
            with contextlib.suppress(grpc.RpcError):
                assert fetch(server, layer="dense")[1].shape == (600, 64 * 64)
                served += 1


def test_unread_weights_are_bounded(serve, failing, tmp_path):
    net = Net()
    dense = net.node("MatMul", net.node("Flatten", "x"), net.weights(64 * 64, 2500), name="dense")
    put(tmp_path, "wide", 1, net.model(dense, (1, 64, 64), 2500))
    with serve(tmp_path, max_feature_map_bytes=4 * 64 * 64 * 2500) as server:
        # Each is in the middle of its 41 MB, most of which cannot leave.
        calls = [server.stub.GetKernels(pb.GetKernelsRequest(layer="dense"), timeout=60) for _ in range(4)]
        for call in calls:
            next(iter(call))
        failure = failing(lambda: list(server.stub.GetKernels(pb.GetKernelsRequest(layer="dense"), timeout=60)))
        assert failure.code.name == "RESOURCE_EXHAUSTED"
        assert failure.retry_seconds
        for call in calls:
            call.cancel()


def test_as_json(kernels):
    server, expected = kernels
    body = json.dumps({"layer": "output"}).encode()
    flags = b"\0" + len(body).to_bytes(4, "big")
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.state.http_port}/convlens.v1.ConvLens/GetKernels",
        flags + body,
        {"content-type": "application/connect+json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        content = response.read()
    message = json.loads(content[5 : 5 + int.from_bytes(content[1:5], "big")])
    assert message["shape"] == [3, 5]
    np.testing.assert_allclose(message["bias"], expected["output"][2], rtol=1e-6)
