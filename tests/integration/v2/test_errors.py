"""Every row of the error table: by code and by the text that Triton's clients look for."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convlens_server.batcher import Batcher
from convlens_server.engine import Engine
from convlens_server.v2 import service_pb2 as pb
from integration.v2.asking import Asked, normalised, outputs, tensor
from support import linear_model, pixels, put, serving

NOT_FOUND = grpc.StatusCode.NOT_FOUND
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def image(**changes):
    """The fields of a good request, with changes to its input."""
    fields = tensor("image", pixels(1))
    for name, value in changes.items():
        if name == "shape":
            fields["inputs"][0].ClearField("shape")
            fields["inputs"][0].shape.extend(value)
        else:
            setattr(fields["inputs"][0], name, value)
    return fields


MODELS = [
    ("none", "", NOT_FOUND, "Request for unknown model: 'none' is not found"),
    ("", "", NOT_FOUND, "Request for unknown model: '' is not found"),
    ("none", "7", NOT_FOUND, "Request for unknown model: 'none' is not found"),
    ("native", "9", NOT_FOUND, "Request for unknown model: 'native' version 9 is not found"),
    ("native", "three", INVALID, "failed to get model version from specified version string"),
    ("native", "-1", INVALID, "failed to get model version from specified version string"),
    ("native", "3.0", INVALID, "failed to get model version from specified version string"),
    ("native", "1" * 40, INVALID, "failed to get model version from specified version string"),
]


@pytest.mark.parametrize(("name", "version", "code", "text"), MODELS)
@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer", "ModelStatistics"])
def test_no_such_model(server, failing, method, name, version, code, text):
    if method == "ModelStatistics" and not name:
        return  # Asks for all.
    if method == "ModelInfer":
        request = pb.ModelInferRequest(model_name=name, model_version=version, **image())
    else:
        request = getattr(pb, f"{method}Request")(name=name, version=version)
    failure = failing(lambda: server.ask(method, request))

    assert failure.code == code
    assert text in failure.text


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelInfer"])
@pytest.mark.parametrize("version", ["", "1"])
def test_a_model_that_failed_to_load(server, failing, method, version):
    if method == "ModelInfer":
        request = pb.ModelInferRequest(model_name="broken", model_version=version, **image())
    else:
        request = getattr(pb, f"{method}Request")(name="broken", version=version)
    failure = failing(lambda: server.ask(method, request))

    assert failure.code == UNAVAILABLE
    assert "is not at ready state" in failure.text
    assert "not an ONNX model" in failure.text


def two_inputs(first, second):
    fields = image()
    fields["inputs"] = [pb.ModelInferRequest.InferInputTensor(name=n, datatype="UINT8") for n in (first, second)]
    return fields


def typed(field, values, **changes):
    fields = image(**changes)
    getattr(fields["inputs"][0].contents, field).extend(values)
    fields.pop("raw_input_contents")
    return fields


def half():
    fields = tensor("x", normalised(pixels(1), np.float16))
    fields["inputs"][0].contents.fp32_contents.extend([0.5] * 64)
    fields.pop("raw_input_contents")
    return fields


def parameters(**values):
    return {**image(), "parameters": {name: pb.InferParameter(**value) for name, value in values.items()}}


REQUESTS = {
    "wrong shape": (
        image(shape=[1, 3, 4, 1]),
        "unexpected shape for input 'image' for model 'native'. Expected [-1,8,8,1], got [1,3,4,1]",
    ),
    "too few dimensions": (image(shape=[8, 8, 1]), "Expected [-1,8,8,1], got [8,8,1]"),
    "no dimensions": (image(shape=[]), "Expected [-1,8,8,1], got []"),
    "negative batch": (image(shape=[-1, 8, 8, 1]), "Expected [-1,8,8,1], got [-1,8,8,1]"),
    "wrong datatype": (
        image(datatype="FP32"),
        "inference input 'image' data-type is 'FP32', but model 'native' expects 'UINT8'",
    ),
    "unknown datatype": (image(datatype="uint8"), "data-type is 'uint8', but model 'native' expects 'UINT8'"),
    "missing input": ({"inputs": []}, "expected 1 inputs but got 0 inputs for model 'native'"),
    "extra input": (two_inputs("image", "other"), "expected 1 inputs but got 2 inputs for model 'native'"),
    "duplicate input": (two_inputs("image", "image"), "input 'image' already exists in request"),
    "unknown input": (image(name="img"), "unexpected inference input 'img' for model 'native'"),
    "unknown output": (
        {**image(), "outputs": outputs("score")},
        "unexpected inference output 'score' for model 'native' (did you mean scores?)",
    ),
    "duplicate output": ({**image(), "outputs": outputs("scores", "scores")}, "output 'scores' already exists"),
    "empty batch": (
        {**tensor("image", pixels(1)[:0])},
        "inference request batch-size must be >= 1 for 'native'",
    ),
    "batch too large": (
        tensor("image", pixels(65)),
        "inference request batch-size must be <= 64 for 'native'",
    ),
    "layers of too many images": (
        {**tensor("image", pixels(17)), "outputs": outputs("output")},
        "inference request batch-size must be <= 16 for 'native' where layers are asked for",
    ),
    "too few bytes": (
        {**image(), "raw_input_contents": [bytes(63)]},
        "input byte size mismatch for input 'image' for model 'native': Expected 64, got 63",
    ),
    "too many bytes": ({**image(), "raw_input_contents": [bytes(65)]}, "Expected 64, got 65"),
    "no contents at all": ({"inputs": image()["inputs"]}, "input byte size mismatch"),
    "two raw contents": ({**image(), "raw_input_contents": [bytes(64)] * 2}, "expected 1 inputs but got 2 raw"),
    "raw and typed": (
        {**typed("uint_contents", [1] * 64), "raw_input_contents": [bytes(64)]},
        "contents field must not be specified when using raw_input_contents",
    ),
    "typed in the wrong field": (
        typed("fp32_contents", [0.5] * 64),
        "unexpected explicit tensor data for input tensor 'image' for model 'native' of type 'UINT8'",
    ),
    "typed, too few": (typed("uint_contents", [1] * 63), "input byte size mismatch"),
    "typed, too large": (typed("uint_contents", [256] * 64), "has the value 256, but UINT8 ends at 255"),
    "bytes, wrong shape": (
        image(datatype="BYTES", shape=[1, 2]),
        "unexpected shape for input 'image' for model 'native'. Expected [-1] or [-1,1], got [1,2]",
    ),
    "bytes, too few": (
        {**image(datatype="BYTES", shape=[2]), "raw_input_contents": [b"\1\0\0\0a"]},
        "expected 2 elements, got 1",
    ),
    "bytes, too many": (
        {**image(datatype="BYTES", shape=[1]), "raw_input_contents": [b"\1\0\0\0a" * 2]},
        "expected 1 elements, got more",
    ),
    "bytes, a length that lies": (
        {**image(datatype="BYTES", shape=[1]), "raw_input_contents": [b"\xff\xff\xff\xffa"]},
        "element 0 says that it has 4294967295 bytes, but 1 follow",
    ),
    "bytes, no whole length": (
        {**image(datatype="BYTES", shape=[1]), "raw_input_contents": [b"\1\0"]},
        "element 0 has no whole length",
    ),
    "bytes that are no image": (
        {**image(datatype="BYTES", shape=[1]), "raw_input_contents": [b"\1\0\0\0a"]},
        "image 0 is not a JPEG, PNG or WebP file",
    ),
    "classification of maps": (
        {**image(), "outputs": outputs("normalise", classification=2)},
        "classification needs one value for each class",
    ),
    "classification of none": ({**image(), "outputs": outputs("scores", classification=0)}, "must be at least 1"),
    "timeout as a text": (parameters(timeout={"string_param": "1"}), "parameter 'timeout' must be an int64_param"),
    "negative timeout": (parameters(timeout={"int64_param": -1}), "parameter 'timeout' is -1, but must be 0 or more"),
    "priority as a truth value": (parameters(priority={"bool_param": True}), "parameter 'priority' must be"),
    "reserved parameter": (
        parameters(triton_mine={"bool_param": True}),
        "parameter keys starting with 'triton_' are reserved",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_wrong_requests(server, failing, name):
    fields, text = REQUESTS[name]
    failure = failing(lambda: server.infer(model_name="native", **fields))

    assert failure.code == INVALID
    assert text in failure.text
    # In a stream the same text, and the stream goes on.
    good = pb.ModelInferRequest(model_name="native", id="good", **image())
    answers = list(server.stream(iter([pb.ModelInferRequest(model_name="native", id="bad", **fields), good])))
    by_id = {answer.infer_response.id: answer for answer in answers}
    assert by_id["bad"].error_message == failure.text
    assert by_id["good"].infer_response.outputs


def test_float16_travels_raw_only(server, failing):
    failure = failing(lambda: server.infer(model_name="half", **half()))

    assert failure.code == INVALID
    assert "which only raw_input_contents can hold" in failure.text


@pytest.mark.parametrize("version", ["", "2"])
def test_wrong_shape_of_a_foreign_network(server, failing, version):
    values = np.zeros((1, 8, 8, 1), np.float32)
    failure = failing(lambda: server.infer(model_name="linear", model_version=version, **tensor("x", values)))

    assert failure.code == INVALID
    text = "unexpected shape for input 'x' for model 'linear'. Expected [-1,1,8,8], got [1,8,8,1]"
    assert text in failure.text


def test_a_message_that_is_no_request(server, failing):
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    failure = failing(lambda: call(b"\xff\xff", timeout=10))

    assert failure.code == INVALID


@pytest.mark.parametrize("method", ["TraceSetting", "LogSettings", "CudaSharedMemoryRegister"])
def test_methods_that_are_not_there(server, failing, method):
    call = server.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")

    assert failing(lambda: call(b"", timeout=10)).code == grpc.StatusCode.UNIMPLEMENTED


@given(count=st.integers(1, 6), change=st.integers(-130, 130).filter(bool))
def test_bytes_that_do_not_fit_any_shape(server, count, change):
    size = max(count * 64 + change, 0)
    given = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[count, 8, 8, 1])
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(model_name="native", inputs=[given], raw_input_contents=[bytes(size)])

    assert caught.value.code() == INVALID
    assert f"Expected {count * 64}, got {size}" in caught.value.details()


@given(shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), size=st.integers(0, 300))
def test_any_shape_is_answered_or_refused(server, shape, size):
    given = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=shape)
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(model_name="native", inputs=[given], raw_input_contents=[bytes(size)])

    assert caught.value.code() == INVALID


@given(data=st.binary(max_size=200))
def test_any_message_is_answered_or_refused(server, data):
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=10)

    assert caught.value.code() in (INVALID, NOT_FOUND)


class Occupied:
    """A model whose engine is held up."""

    def __init__(self, monkeypatch) -> None:
        self.gate = threading.Event()
        self.running = threading.Event()
        self.runs: list[bytes] = []
        run = Engine.run

        def held(engine, pixels):
            self.runs.append(pixels)
            self.running.set()
            self.gate.wait(30)
            return run(engine, pixels)

        monkeypatch.setattr(Engine, "run", held)


@pytest.fixture
def occupied(monkeypatch):
    occupied = Occupied(monkeypatch)
    yield occupied
    occupied.gate.set()


@pytest.mark.parametrize("transport", ["completion_queue", "aio"])
def test_a_full_queue_and_passed_deadlines(models, failing, occupied, transport):
    with serving(models, transport=transport, max_queue=2) as served:
        served.__class__ = Asked
        call = served.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )

        def request(**fields):
            return pb.ModelInferRequest(model_name="native", **image(), **fields).SerializeToString()

        first = call.future(request(), timeout=30)
        assert occupied.running.wait(20)
        late = call.future(request(parameters={"timeout": pb.InferParameter(int64_param=1000)}), timeout=30)
        waiting = call.future(request(), timeout=30)
        labels = {"model": "native", "version": "3"}
        ends = time.monotonic() + 20
        while served.metric("nv_inference_pending_request_count", **labels) < 2:
            assert time.monotonic() < ends
        full = failing(lambda: call(request(), timeout=30))
        assert full.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "Exceeds maximum queue size" in full.text
        assert full.retry_seconds is not None

        [answer] = list(served.stream(iter([pb.ModelInferRequest(model_name="native", id="s", **image())])))
        assert "Exceeds maximum queue size" in answer.error_message

        occupied.gate.set()
        assert first.result().outputs
        assert waiting.result().outputs
        failure = failing(late.result)
        assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "deadline passed" in failure.text
        while served.metric("nv_inference_request_success", **labels) < 2:
            assert time.monotonic() < ends
        assert served.metric("nv_inference_request_failure", reason="REJECTED", **labels) == 3


def test_priority_levels_have_queues_of_their_own(tmp_path, failing, occupied):
    put(tmp_path, "linear", 1, linear_model())
    (tmp_path / "linear" / "config.pbtxt").write_text(
        """
        max_batch_size: 1
        dynamic_batching {
          priority_levels: 2 default_priority_level: 2
          priority_queue_policy { key: 2 value { max_queue_size: 2 } }
          priority_queue_policy {
            key: 1 value { timeout_action: DELAY default_timeout_microseconds: 1 allow_timeout_override: true }
          }
        }
        """
    )
    with serving(tmp_path) as served:
        call = served.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )

        def input_of(seed):
            return normalised(pixels(1, seed))

        def request(seed, priority):
            given = {"priority": pb.InferParameter(int64_param=priority)}
            fields = tensor("x", input_of(seed))
            return pb.ModelInferRequest(model_name="linear", parameters=given, **fields).SerializeToString()

        def pending(count):
            ends = time.monotonic() + 20
            while served.metric("nv_inference_pending_request_count", model="linear") != count:
                assert time.monotonic() < ends
                time.sleep(0.01)

        calls = [call.future(request(0, 2), timeout=30)]
        assert occupied.running.wait(20)
        for seed in (1, 2):
            calls.append(call.future(request(seed, 0), timeout=30))
            pending(seed)
        full = failing(lambda: call(request(3, 2), timeout=30))
        assert full.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "queue holds 2 images for priority level 2, and 1 more are over its limit of 2" in full.text
        # A flood of the lower level leaves room for the better one, whose late request is answered, and first.
        calls.append(call.future(request(4, 1), timeout=30))
        pending(3)
        occupied.gate.set()
        for each in calls:
            assert each.result().outputs
    assert occupied.runs == [input_of(seed).tobytes() for seed in (0, 4, 1, 2)]


@pytest.mark.parametrize("transport", ["completion_queue", "aio"])
def test_a_cancelled_request(models, occupied, monkeypatch, transport):
    items = []
    submit = Batcher.submit
    monkeypatch.setattr(Batcher, "submit", lambda self, item, *rest: (items.append(item), submit(self, item, *rest))[1])
    with serving(models, transport=transport) as served:
        call = served.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )
        request = pb.ModelInferRequest(model_name="native", **image()).SerializeToString()
        labels = {"model": "native", "version": "3"}
        first = call.future(request, timeout=30)
        assert occupied.running.wait(20)
        second = call.future(request, timeout=30)
        ends = time.monotonic() + 20
        while served.metric("nv_inference_pending_request_count", **labels) < 1:
            assert time.monotonic() < ends
        second.cancel()
        assert second.code() == grpc.StatusCode.CANCELLED
        while not items[1].gone:
            assert time.monotonic() < ends
        occupied.gate.set()
        assert first.result().outputs
        while served.metric("nv_inference_request_failure", reason="CANCELED", **labels) < 1:
            assert time.monotonic() < ends


def test_a_failed_batch(server, failing, monkeypatch):
    def broken(engine, pixels):
        raise RuntimeError("broken")

    monkeypatch.setattr(Engine, "run", broken)
    failure = failing(lambda: server.infer(model_name="native", **image()))

    assert failure.code == grpc.StatusCode.INTERNAL
    assert server.metric("nv_inference_request_failure", reason="BACKEND", model="native", version="3") >= 1
