from __future__ import annotations

import contextlib
import warnings

import grpc
import numpy as np
import pytest

from convlens.v1 import convlens_pb2 as pb
from convlens_server.errors import QueueFull
from convlens_server.pool import BoundedPool
from support import put, raw


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 12, 3), np.uint8)


def fetch(server, **fields):
    """The layers of a request: {name: (first message, values)}, chunks joined and checked."""
    joined: dict[str, tuple[pb.GetFeatureMapsResponse, bytearray]] = {}
    last = ""
    for message in server.stub.GetFeatureMaps(pb.GetFeatureMapsRequest(**fields), timeout=30):
        assert len(message.data) <= 2**20
        if message.byte_offset == 0:
            assert message.layer not in joined
            joined[message.layer] = (message, bytearray())
            last = message.layer
        assert message.layer == last
        content = joined[message.layer][1]
        assert len(content) == message.byte_offset
        content += message.data
    result = {}
    for name, (first, content) in joined.items():
        assert len(content) == first.total_bytes
        shape = tuple(first.shape)
        if first.value_type == pb.VALUE_TYPE_FLOAT32:
            values = np.frombuffer(content, "<f4").reshape(shape)
        elif first.value_type == pb.VALUE_TYPE_FLOAT16:
            values = np.frombuffer(content, "<f2").reshape(shape)
        else:
            per_channel = (*shape[:2], *[1] * (len(shape) - 2))
            scale = np.array(first.scale, np.float32).reshape(per_channel)
            offset = np.array(first.offset, np.float32).reshape(per_channel)
            values = offset + scale * np.frombuffer(content, np.uint8).reshape(shape)
        result[name] = (first, values)
    return result


def test_layers_follow_from_each_other(server):
    maps = fetch(server, model="conv", images=raw(images(3)), all_layers=True)

    assert list(maps)[:7] == ["conv_1", "relu_1", "pool_1", "conv_2", "relu_2", "flatten", "output"]
    values = {name: value for name, (_, value) in maps.items()}
    assert values["conv_1"].shape == (3, 6, 16, 12)
    np.testing.assert_array_equal(values["relu_1"], np.maximum(values["conv_1"], 0))
    np.testing.assert_array_equal(values["pool_1"], values["relu_1"].reshape(3, 6, 8, 2, 6, 2).max((3, 5)))
    np.testing.assert_array_equal(values["flatten"], values["relu_2"].reshape(3, -1))
    response = server.stub.Classify(
        pb.ClassifyRequest(model="conv", images=raw(images(3)), include_logits=True), timeout=10
    )
    logits = [result.logits for result in response.results]
    np.testing.assert_allclose(values["output"], logits, rtol=1e-4, atol=1e-4)
    first = maps["relu_2"][0]
    assert (first.kind, first.model, first.version) == ("relu", "conv", 1)
    assert first.queue_ms >= 0
    assert first.compute_ms > 0


def test_by_kind_and_name(server):
    maps = fetch(server, model="conv", images=raw(images(1)), kinds=["relu"], layers=["pool_1", "relu_1"])

    assert list(maps) == ["relu_1", "pool_1", "relu_2"]


def test_channels(server):
    request = {"model": "conv", "images": raw(images(2)), "layers": ["conv_1", "conv_2"]}
    whole = fetch(server, **request)

    some = fetch(server, **request, channels=[3, 0])

    for name, (first, values) in some.items():
        np.testing.assert_array_equal(values, whole[name][1][:, [3, 0]])
        assert list(first.channels) == [3, 0]
        assert list(first.shape)[1] == 2


@pytest.mark.parametrize("value_type", [pb.VALUE_TYPE_FLOAT16, pb.VALUE_TYPE_UINT8])
def test_value_types(server, value_type):
    request = {"model": "conv", "images": raw(images(2)), "all_layers": True}
    exact = fetch(server, **request)

    short = fetch(server, **request, value_type=value_type)

    for name, (first, values) in short.items():
        expected = exact[name][1]
        if value_type == pb.VALUE_TYPE_FLOAT16:
            np.testing.assert_allclose(values, expected, rtol=2**-11, atol=3e-8)
            assert first.total_bytes == 2 * expected.size
        else:
            scale = np.array(first.scale).reshape(*expected.shape[:2], *[1] * (expected.ndim - 2))
            assert (np.abs(values - expected) <= scale * 0.501 + 1e-6).all()
            assert first.total_bytes == expected.size


def test_a_layer_larger_than_a_message_comes_in_chunks(serve, tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(
        np.ones((16, 1, 1, 1), np.float32) * np.arange(16)[:, None, None, None].astype("f"), "w"
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "wide"),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["y"], "flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 300, 200])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
        [weights],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    put(tmp_path, "wide", 1, model)
    image = np.random.default_rng(0).integers(0, 256, (3, 300, 200, 1), np.uint8)
    with serve(tmp_path) as server:
        [(first, values)] = fetch(server, images=raw(image), layers=["wide"]).values()
        assert first.total_bytes == 4 * 3 * 16 * 300 * 200 > 10 * 2**20
        expected = image.transpose(0, 3, 1, 2) / 255 * np.arange(16)[None, :, None, None]
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_a_caller_that_leaves_frees_what_it_held(serve, models):
    """Room for four requests' maps at once: many that leave in the middle must not use it up."""
    size = 4 * 6 * 16 * 12 * 16
    with serve(models, max_feature_map_bytes=size) as server:
        request = pb.GetFeatureMapsRequest(model="conv", images=raw(images(16)), layers=["conv_1"])
        for n in range(40):
            call = server.stub.GetFeatureMaps(request, timeout=30)
            if n % 2:
                next(iter(call))
            call.cancel()
            with contextlib.suppress(grpc.RpcError):
                list(call)
        request = {"model": "conv", "images": raw(images(16)), "layers": ["conv_1"]}
        served = 0
        while served < 8:
            # What was left behind goes when its thread comes to it; until then the server refuses.
            with contextlib.suppress(grpc.RpcError):
                assert fetch(server, **request)["conv_1"][1].shape == (16, 6, 16, 12)
                served += 1


def test_counted(server):
    def count():
        return server.metric("convlens_feature_map_requests_total", model="conv")

    before = count()
    fetch(server, model="conv", images=raw(images(1)), layers=["conv_1"])
    # The answer reaches the caller before the counter: it is counted with the time it took.
    while count() != before + 1:
        pass
    assert server.metric("convlens_requests_total", model="conv", method="GetFeatureMaps", code="OK") >= 1


@pytest.mark.timeout(180)
def test_a_foreign_torchvision_network_is_classified_and_mapped(serve, tmp_path):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=7).eval()
    path = tmp_path / "squeeze" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(1, 3, 96, 96),), path, dynamo=False, input_names=["image"],
            dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
    picture = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    tensor = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
    kept = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d):
            module.register_forward_hook(lambda _m, _i, out, name=name: kept.__setitem__(name, out.clone().numpy()))
    with torch.no_grad():
        logits = network(tensor).numpy()

    with serve(tmp_path) as server:
        response = server.stub.Classify(pb.ClassifyRequest(images=raw(picture), include_logits=True), timeout=30)
        np.testing.assert_allclose([result.logits for result in response.results], logits, rtol=1e-4, atol=1e-4)
        maps = fetch(server, images=raw(picture), kinds=["conv", "max_pool"])

    assert len(kept) == 29
    assert set(kept) <= set(maps)
    for name, expected in kept.items():
        np.testing.assert_allclose(maps[name][1], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_request_that_finds_no_place_is_counted_once(serve, models, monkeypatch, failing):
    def full(pool, work, size=0):
        raise QueueFull("all places are taken", retry_after=0.1)

    with serve(models) as server:
        monkeypatch.setattr(BoundedPool, "submit", full)
        request = pb.GetFeatureMapsRequest(model="conv", images=raw(images(1)), layers=["conv_1"])
        assert failing(lambda: list(server.stub.GetFeatureMaps(request, timeout=10))).reason == "QUEUE_FULL"
        monkeypatch.undo()
        # A later answer on the same connection: the end of the first call has been seen by then.
        fetch(server, model="conv", images=raw(images(1)), layers=["conv_1"])

        def counted(code):
            return server.metric("convlens_requests_total", model="conv", method="GetFeatureMaps", code=code)

        assert (counted("RESOURCE_EXHAUSTED"), counted("CANCELLED")) == (1, 0)
