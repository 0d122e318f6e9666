"""A server that answers by script, behind a real socket, and both clients with one face."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import convlens
from convlens.cli import main
from convlens.v1 import convlens_pb2 as pb
from convlens.v1.convlens_pb2_grpc import ConvLensServicer, add_ConvLensServicer_to_server


class Refusal(Exception):  # noqa: N818
    """Scripts the end of a call with a status, with the details that convlens_server sends."""

    def __init__(self, code: grpc.StatusCode, text: str = "scripted", **details: Any) -> None:
        super().__init__(text)
        self.code, self.text = code, text
        self.status = status_pb2.Status(code=code.value[0], message=text)
        if "reason" in details:
            info = error_details_pb2.ErrorInfo(
                reason=details["reason"], domain="convlens", metadata=details.get("metadata", {})
            )
            self._add("ErrorInfo", info)
        if "field" in details:
            violation = error_details_pb2.BadRequest.FieldViolation(field=details["field"], description=text)
            self._add("BadRequest", error_details_pb2.BadRequest(field_violations=[violation]))
        if "retry_after" in details:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(details["retry_after"] * 1e9))
            self._add("RetryInfo", error_details_pb2.RetryInfo(retry_delay=delay))
        if "request_id" in details:
            self._add("RequestInfo", error_details_pb2.RequestInfo(request_id=details["request_id"]))

    def _add(self, kind: str, message: Any) -> None:
        self.status.details.append(
            any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=message.SerializeToString())
        )


class Fake(ConvLensServicer):
    """Answers each call with the next answer scripted for its method.

    An answer is a message, a list of messages, a Refusal, or a function of (request or requests, context) that
    returns one of these. `check` fails on answers that nobody fetched, and on calls that nobody scripted.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []
        self.deadlines: list[float | None] = []
        self._scripts: dict[str, deque[Any]] = {}
        self._unexpected: list[str] = []

    def expect(self, method: str, *answers: Any) -> None:
        self._scripts.setdefault(method, deque()).extend(answers)

    def forget(self) -> None:
        """What is left of the script is not needed."""
        self._scripts.clear()

    def check(self) -> None:
        assert not self._unexpected, f"calls that were not scripted: {self._unexpected}"
        unused = {method: len(script) for method, script in self._scripts.items() if script}
        assert not unused, f"answers that nobody fetched: {unused}"

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append((method, request))
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())
        script = self._scripts.get(method)
        if not script:
            self._unexpected.append(method)
            context.abort(grpc.StatusCode.INTERNAL, f"{method} was not scripted")
        answer = script.popleft()
        if callable(answer):
            answer = answer(request, context)
        if isinstance(answer, Refusal):
            if answer.status.details:
                context.set_trailing_metadata((("grpc-status-details-bin", answer.status.SerializeToString()),))
            context.abort(answer.code, answer.text)
        return answer

    def Classify(self, request, context):  # noqa: N802
        return self._answer("Classify", request, context)

    def ListModels(self, request, context):  # noqa: N802
        return self._answer("ListModels", request, context)

    def GetModel(self, request, context):  # noqa: N802
        return self._answer("GetModel", request, context)

    def GetFeatureMaps(self, request, context):  # noqa: N802
        yield from self._answer("GetFeatureMaps", request, context)

    def GetSamples(self, request, context):  # noqa: N802
        return self._answer("GetSamples", request, context)

    def GetGraph(self, request, context):  # noqa: N802
        return self._answer("GetGraph", request, context)

    def ExplainUnit(self, request, context):  # noqa: N802
        return self._answer("ExplainUnit", request, context)

    def Attribute(self, request, context):  # noqa: N802
        return self._answer("Attribute", request, context)

    def GetKernels(self, request, context):  # noqa: N802
        yield from self._answer("GetKernels", request, context)

    def MaximizingImages(self, request, context):  # noqa: N802
        yield from self._answer("MaximizingImages", request, context)

    def Compare(self, request, context):  # noqa: N802
        yield from self._answer("Compare", request, context)

    def ClassifyStream(self, requests, context):  # noqa: N802
        yield from self._answer("ClassifyStream", requests, context)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts servers: serve(servicer, credentials=None) gives the address."""
    servers = []

    def start(servicer: ConvLensServicer, credentials: grpc.ServerCredentials | None = None) -> str:
        # 16 threads, each of which an unfinished stream holds one of.
        server = grpc.server(ThreadPoolExecutor(16))
        add_ConvLensServicer_to_server(servicer, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.check()


@pytest.fixture
def address(fake: Fake, serve: Callable[..., str]) -> str:
    return serve(fake)


class AsyncFace:
    """An AsyncClient with the face of a Client. It is made outside of any loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client = convlens.AsyncClient(*args, **kwargs)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                return await getattr(self._client, name)(*args, **kwargs)

            return self._runner.run(run())

        return call

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[convlens.Outcome]:
        outcomes: AsyncIterator[Any] = self._client.stream(*args, **kwargs)

        async def step() -> Any:
            return await anext(outcomes, None)

        async def end() -> None:
            await outcomes.aclose()

        def steps() -> Iterator[convlens.Outcome]:
            try:
                while (outcome := self._runner.run(step())) is not None:
                    yield outcome
            finally:
                self._runner.run(end())

        return steps()

    def __enter__(self) -> AsyncFace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of either kind, closed at the end."""
    clients: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        clients.append((convlens.Client if request.param == "sync" else AsyncFace)(*args, **kwargs))
        return clients[-1]

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(connect: Callable[..., Any], address: str) -> Any:
    return connect(address)


@pytest.fixture
def refusal() -> type[Refusal]:
    return Refusal


def _classified(*labels: str) -> pb.ClassifyResponse:
    results = [
        pb.Classification(predictions=[pb.Prediction(label=label, index=i, score=0.75)])
        for i, label in enumerate(labels)
    ]
    return pb.ClassifyResponse(results=results, model="lecture_cnn", version=3, queue_ms=0.5, compute_ms=1.5)


@pytest.fixture
def classified() -> Callable[..., pb.ClassifyResponse]:
    """A response with a result for each label."""
    return _classified


@pytest.fixture
def echo() -> Callable[..., Any]:
    """Scripts a stream: each file of text is classified as that text."""

    def answers(requests: Iterable[pb.ClassifyStreamRequest], context: Any) -> Iterator[pb.ClassifyStreamResponse]:
        for message in requests:
            label = message.request.images.encoded.files[0].decode()
            yield pb.ClassifyStreamResponse(id=message.id, response=_classified(label))

    return answers


@pytest.fixture
def patience() -> Iterator[threading.Event]:
    """An event that a scripted answer may wait for; set at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command against the fake; gives its status, stdout and stderr."""
    monkeypatch.setenv("CONVLENS_SERVER", address)

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file that the fake takes for an image."""
    path = tmp_path / "seven.png"
    path.write_bytes(b"7")
    return path
