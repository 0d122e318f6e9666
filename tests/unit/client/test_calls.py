"""Both clients against a scripted server: requests, answers, errors, deadlines, repetitions."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest

import convlens
from convlens._channel import Endpoint
from convlens.v1 import convlens_pb2 as pb
from convlens.v1.convlens_pb2_grpc import ConvLensServicer

_DETAILS = {
    "reason": "SOME_REASON",
    "metadata": {"limit": "12"},
    "request_id": "abc",
    "field": "top_k",
}

_EVERY_STATUS = {
    grpc.StatusCode.CANCELLED: convlens.Cancelled,
    grpc.StatusCode.UNKNOWN: convlens.ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: convlens.InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: convlens.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: convlens.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: convlens.ServerError,
    grpc.StatusCode.PERMISSION_DENIED: convlens.AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: convlens.ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: convlens.ModelNotReady,
    grpc.StatusCode.ABORTED: convlens.ServerError,
    grpc.StatusCode.OUT_OF_RANGE: convlens.InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: convlens.Unsupported,
    grpc.StatusCode.INTERNAL: convlens.ServerError,
    grpc.StatusCode.UNAVAILABLE: convlens.Unavailable,
    grpc.StatusCode.DATA_LOSS: convlens.ServerError,
    grpc.StatusCode.UNAUTHENTICATED: convlens.AccessDenied,
}


def test_the_table_has_every_status():
    assert set(_EVERY_STATUS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize("code", _EVERY_STATUS, ids=lambda code: code.name)
@pytest.mark.parametrize("call", ["classify", "maps", "models", "stream"])
def test_a_status_becomes_an_exception_that_carries_the_details(client, fake, refusal, code, call):
    method = {"classify": "Classify", "maps": "GetFeatureMaps", "models": "ListModels", "stream": "ClassifyStream"}[
        call
    ]
    attempts = 5 if code is grpc.StatusCode.UNAVAILABLE else 1
    fake.expect(method, *[refusal(code, "what is wrong", **_DETAILS)] * attempts)
    ask = {
        "classify": lambda: client.classify(b"1"),
        "maps": lambda: client.maps(b"1"),
        "models": client.models,
        "stream": lambda: list(client.stream([b"1"])),
    }[call]
    with pytest.raises(convlens.Error) as caught:
        ask()
    error = caught.value
    assert type(error) is _EVERY_STATUS[code]
    assert str(error) == "what is wrong"
    assert error.code is code
    assert error.reason == "SOME_REASON"
    assert error.metadata == {"limit": "12"}
    assert error.request_id == "abc"
    assert error.field == "top_k"
    assert error.retry_after is None
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_status_without_details_keeps_its_text(client, fake, refusal):
    fake.expect("ListModels", refusal(grpc.StatusCode.INTERNAL, "bare"))
    with pytest.raises(convlens.ServerError, match=r"^bare$") as caught:
        client.models()
    assert (caught.value.reason, caught.value.metadata, caught.value.request_id) == ("", {}, "")


def test_details_that_are_not_protobuf_are_ignored(client, fake):
    def broken(_, context):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")

    fake.expect("ListModels", broken)
    with pytest.raises(convlens.NotFound, match="no such model"):
        client.models()


def test_a_bad_image_is_told_from_other_bad_arguments(client, fake, refusal):
    fake.expect("Classify", refusal(grpc.StatusCode.INVALID_ARGUMENT, field="images.raw.channels"))
    with pytest.raises(convlens.InvalidImage):
        client.classify(b"1")


def test_builtin_kinds_of_error_catch_ours():
    assert issubclass(convlens.InvalidImage, ValueError)
    assert issubclass(convlens.NotFound, LookupError)
    assert issubclass(convlens.DeadlineExceeded, TimeoutError)
    assert issubclass(convlens.Unavailable, ConnectionError)


def test_classify_one(client, fake):
    response = pb.ClassifyResponse(
        results=[
            pb.Classification(
                predictions=[
                    pb.Prediction(label="7", index=7, score=0.75),
                    pb.Prediction(label="1", index=1, score=0.25),
                ],
                scores=[0, 0.25, 0.75],
                logits=[-3, 1, 2],
            )
        ],
        model="lecture_cnn",
        version=3,
        queue_ms=0.5,
        compute_ms=1.5,
    )
    fake.expect("Classify", response)
    result = client.classify(b"a file", model="lecture_cnn", version=3, top_k=2, scores=True, logits=True)
    assert result == convlens.Classification(
        (convlens.Prediction("7", 7, 0.75), convlens.Prediction("1", 1, 0.25)), "lecture_cnn", 3, 0.5, 1.5
    )
    assert (result.label, result.index, result.score) == ("7", 7, 0.75)
    assert result.scores.dtype == result.logits.dtype == np.float32
    assert result.scores.tolist() == [0, 0.25, 0.75]
    assert result.logits.tolist() == [-3, 1, 2]
    assert fake.calls == [
        (
            "Classify",
            pb.ClassifyRequest(
                model="lecture_cnn",
                version=3,
                images=pb.Images(encoded=pb.EncodedImages(files=[b"a file"])),
                top_k=2,
                include_scores=True,
                include_logits=True,
            ),
        )
    ]


def test_classify_many(client, fake, classified):
    fake.expect("Classify", classified("cat", "dog"))
    assert [result.label for result in client.classify([b"1", b"2"])] == ["cat", "dog"]
    assert not fake.calls[0][1].HasField("top_k")


def test_a_list_of_one_gives_a_list_of_one(client, fake, classified):
    fake.expect("Classify", classified("cat"), classified("cat"))
    assert [result.label for result in client.classify([b"1"])] == ["cat"]
    assert [result.label for result in client.classify(np.zeros((1, 2, 2, 1), np.uint8))] == ["cat"]


def test_fewer_results_than_images_is_the_servers_error(client, fake, classified):
    fake.expect("Classify", classified("cat"))
    with pytest.raises(convlens.ServerError, match="1 results for 2 images"):
        client.classify([b"1", b"2"])


def test_models(client, fake):
    ready = pb.ModelVersion(
        model="a", version=2, state=pb.MODEL_STATE_READY, is_default=True, classes=10, height=28, width=29, channels=1,
        parameters=1_199_882,
    )  # fmt: skip
    failed = pb.ModelVersion(model="b", version=1, state=pb.MODEL_STATE_FAILED, error="corrupt")
    loading = pb.ModelVersion(model="c", version=3, state=pb.MODEL_STATE_LOADING)
    unloaded = pb.ModelVersion(model="c", version=4, state=pb.MODEL_STATE_UNLOADED)
    fake.expect("ListModels", pb.ListModelsResponse(models=[ready, failed, loading, unloaded]))
    versions = client.models()
    assert versions == [
        convlens.ModelVersion("a", 2, "ready", "", True, 10, 28, 29, 1, 1_199_882),
        convlens.ModelVersion("b", 1, "failed", "corrupt", False, 0, 0, 0, 0, 0),
        convlens.ModelVersion("c", 3, "loading", "", False, 0, 0, 0, 0, 0),
        convlens.ModelVersion("c", 4, "unloaded", "", False, 0, 0, 0, 0, 0),
    ]
    assert [version.ready for version in versions] == [True, False, False, False]


def _model() -> pb.GetModelResponse:
    layer = pb.Layer(
        name="conv_1", kind="conv", op_type="Conv", inputs=["input"], shape=[32, 26, 26], kernel=[3, 3], stride=[1, 1],
        padding=[0, 0, 0, 0], dilation=[1, 1], groups=1, parameters=320, multiply_accumulates=194_688,
        receptive_field=[3, 3], receptive_field_stride=[1, 1], receptive_field_start=[-1, 0],
    )  # fmt: skip
    return pb.GetModelResponse(
        model="lecture_cnn", version=2, ready_versions=[1, 2], labels=["0", "1"], height=28, width=28, channels=1,
        layers=[layer], parameters=320, multiply_accumulates=194_688, manifest_json='{"labels": ["0", "1"]}',
        device="cpu", max_batch=32,
    )  # fmt: skip


def test_model_and_layers(client, fake):
    fake.expect("GetModel", _model(), _model())
    model = client.model("lecture_cnn", version=2)
    assert (model.model, model.version, model.ready_versions, model.labels) == ("lecture_cnn", 2, (1, 2), ("0", "1"))
    assert model.manifest == {"labels": ["0", "1"]}
    assert (model.device, model.max_batch, model.height, model.width, model.channels) == ("cpu", 32, 28, 28, 1)
    (layer,) = model.layers
    assert layer == convlens.Layer(
        "conv_1", "conv", "Conv", ("input",), (32, 26, 26), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1, 320, 194_688,
        (3, 3), (1, 1), (-1, 0),
    )  # fmt: skip
    assert client.layers("lecture_cnn") == [layer]
    assert fake.calls == [
        ("GetModel", pb.GetModelRequest(model="lecture_cnn", version=2)),
        ("GetModel", pb.GetModelRequest(model="lecture_cnn")),
    ]
    assert isinstance(hash(model), int)


@pytest.mark.parametrize("manifest", ["{", "[]"])
def test_a_manifest_that_is_no_object_is_the_servers_error(client, fake, manifest):
    response = _model()
    response.manifest_json = manifest
    fake.expect("GetModel", response)
    with pytest.raises(convlens.ServerError, match="manifest"):
        client.model()


def test_every_call_has_a_deadline(client, connect, address, fake, classified):
    fake.expect("Classify", classified("a"), classified("a"), classified("a"))
    fake.expect("ListModels", pb.ListModelsResponse())
    client.classify(b"1")
    client.models()
    client.classify(b"1", timeout=500)
    connect(address, timeout=200).classify(b"1")
    for deadline, limit in zip(fake.deadlines, [30, 30, 500, 200], strict=True):
        # grpc rounds up what it tells the server.
        assert deadline is not None
        assert 0 < deadline <= limit * 1.05


def test_a_late_answer(client, fake, patience, address):
    fake.expect("ListModels", lambda *_: patience.wait() and pb.ListModelsResponse())
    with pytest.raises(convlens.DeadlineExceeded, match=f"no answer from {address} within the timeout") as caught:
        client.models(timeout=0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "3", True])
def test_a_timeout_must_be_a_positive_number(client, connect, timeout):
    with pytest.raises(convlens.InvalidRequest, match="timeout is"):
        client.models(timeout=timeout)
    with pytest.raises(convlens.InvalidRequest, match="timeout is"):
        client.stream([], timeout=timeout)
    with pytest.raises(convlens.InvalidRequest, match="timeout is"):
        connect("localhost:1", timeout=timeout)


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_unavailable_is_tried_again(client, fake, refusal, classified, size):
    fake.expect("Classify", *[refusal(grpc.StatusCode.UNAVAILABLE)] * 2, classified("a"))
    assert client.classify(b"1" * size).label == "a"
    assert len(fake.calls) == 3


def test_nobody_there(connect):
    client = connect("127.0.0.1:1")
    with pytest.raises(convlens.Unavailable, match=r"cannot reach 127\.0\.0\.1:1: "):
        client.models()


def test_a_refusal_with_a_hint_is_tried_again(client, fake, refusal, classified):
    full = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.01)
    fake.expect("Classify", full, full, full, full, full, full, classified("a"))
    assert client.classify(b"1").label == "a"


def test_a_feature_map_request_is_tried_again_as_a_whole(client, fake, refusal):
    fake.expect("GetFeatureMaps", refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.01), [])
    assert client.maps(b"1", layers="a") == []


def test_a_refusal_without_a_hint_is_not_tried_again(client, fake, refusal):
    fake.expect("Classify", refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="MESSAGE_TOO_LARGE"))
    with pytest.raises(convlens.ResourceExhausted):
        client.classify(b"1")


def test_a_hint_beyond_the_deadline_is_not_waited_for(client, fake, refusal):
    fake.expect("Classify", refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_after=3600))
    with pytest.raises(convlens.ResourceExhausted) as caught:
        client.classify(b"1")
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after == 3600


def test_metadata_is_sent_with_every_call(connect, address, fake, classified):
    client = connect(address, metadata={"Authorization": "Bearer x"})
    fake.expect("Classify", classified("a"))
    fake.expect("ListModels", pb.ListModelsResponse())
    fake.expect("GetFeatureMaps", [])
    fake.expect("ClassifyStream", [])
    client.classify(b"1")
    client.models()
    client.maps(b"1")
    list(client.stream([]))
    assert [metadata["authorization"] for metadata in fake.metadata] == ["Bearer x"] * 4


@pytest.mark.parametrize("metadata", [{"a b": "x"}, {"a": "grün"}, {"a": "x\n"}, {"": "x"}])
def test_metadata_that_cannot_be_sent(connect, metadata):
    with pytest.raises(convlens.InvalidRequest, match=r"metadata .* cannot be sent"):
        connect("localhost:1", metadata=metadata)


def test_round_robin_over_the_addresses_of_a_name(connect, serve, classified):
    class Counting(ConvLensServicer):
        def __init__(self):
            self.calls = 0

        def Classify(self, request, context):  # noqa: N802
            self.calls += 1
            return classified("a")

    servers = [Counting(), Counting()]
    addresses = [serve(server) for server in servers]
    client = connect("ipv4:" + ",".join(addresses))
    deadline = time.monotonic() + 30
    # Both connections take a moment to stand; from then on the calls alternate.
    while not all(server.calls for server in servers):
        client.classify(b"1")
        assert time.monotonic() < deadline
    before = [server.calls for server in servers]
    for _ in range(10):
        client.classify(b"1")
    assert [server.calls - count for server, count in zip(servers, before, strict=True)] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"version": -1}, "version is -1, but must be 0 … "),
        ({"version": 1.5}, "version is 1.5, but must be an integer"),
        ({"top_k": 0}, "top_k is 0, but must be 1 … "),
        ({"top_k": 2**32}, "top_k is 4294967296"),
        ({"model": 7}, "model is 7, but must be a string"),
        ({"model": "\udc80"}, "not valid Unicode"),
    ],
)
def test_wrong_arguments_are_refused_before_any_call(client, arguments, text):
    with pytest.raises(convlens.InvalidRequest, match=text) as caught:
        client.classify(b"1", **arguments)
    assert caught.value.code is None
    with pytest.raises(convlens.InvalidRequest, match=text):
        client.stream([b"1"], **arguments)


@pytest.mark.parametrize("target", ["localhost", "http://localhost:1", "https://localhost:1", "", "a b:1", "::1:80"])
def test_an_address_must_be_host_and_port(connect, target):
    with pytest.raises(convlens.InvalidRequest, match="must be host:port"):
        connect(target)


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("localhost:1", "dns:///localhost:1"),
        ("[::1]:80", "dns:///[::1]:80"),
        ("unix:/a/socket", "unix:/a/socket"),
        ("ipv4:1.2.3.4:5,1.2.3.4:6", "ipv4:1.2.3.4:5,1.2.3.4:6"),
        ("dns:///some.name:80", "dns:///some.name:80"),
    ],
)
def test_plain_addresses_are_looked_up_by_dns(target, address):
    assert Endpoint(target, 1, False, None).address == address


def test_a_closed_client_says_so(client, fake):
    fake.expect("ListModels", pb.ListModelsResponse())
    client.models()
    client.close()
    client.close()
    for call in (
        client.models,
        lambda: client.classify(b"1"),
        lambda: client.maps(b"1"),
        lambda: list(client.stream([])),
    ):
        with pytest.raises(convlens.UnusableClient, match="is closed"):
            call()


def test_closing_under_a_call_cancels_it(address, fake, patience):
    entered = threading.Event()

    def hold(*_):
        entered.set()
        patience.wait()
        return pb.ListModelsResponse()

    fake.expect("ListModels", hold)
    client = convlens.Client(address)
    caught = []

    def ask():
        with pytest.raises(convlens.Cancelled) as info:
            client.models()
        caught.append(info.value)

    thread = threading.Thread(target=ask)
    thread.start()
    assert entered.wait(30)
    client.close()
    thread.join()
    assert caught


async def test_closing_under_an_async_call_cancels_it(address, fake, patience):
    entered = threading.Event()

    def hold(*_):
        entered.set()
        patience.wait()
        return pb.ListModelsResponse()

    fake.expect("ListModels", hold)
    client = convlens.AsyncClient(address)
    call = asyncio.create_task(client.models())
    assert await asyncio.to_thread(entered.wait, 30)
    await client.close()
    with pytest.raises(convlens.Cancelled):
        await call


async def test_cancelling_the_task_is_not_an_error_of_ours(address, fake, patience):
    entered = threading.Event()

    def hold(*_):
        entered.set()
        patience.wait()
        return pb.ListModelsResponse()

    fake.expect("ListModels", hold)
    async with convlens.AsyncClient(address) as client:
        call = asyncio.create_task(client.models())
        assert await asyncio.to_thread(entered.wait, 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_an_async_client_belongs_to_one_loop(address, fake):
    fake.expect("ListModels", pb.ListModelsResponse())
    client = convlens.AsyncClient(address)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.models())
        with pytest.raises(convlens.UnusableClient, match="another event loop"):
            second.run(client.models())
        first.run(client.close())


def test_threads_may_share_a_client(address, serve):
    class Echo(ConvLensServicer):
        def Classify(self, request, context):  # noqa: N802
            label = request.images.encoded.files[0].decode()
            prediction = pb.Prediction(label=label, score=1)
            return pb.ClassifyResponse(results=[pb.Classification(predictions=[prediction])], model="a", version=1)

    wrong = []
    with convlens.Client(serve(Echo())) as client:

        def ask(name):
            wrong.extend(i for i in range(50) if client.classify(f"{name} {i}".encode()).label != f"{name} {i}")

        threads = [threading.Thread(target=ask, args=[name]) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
