"""The Open Inference Protocol as REST: the methods of the gRPC service, as JSON and binary data over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.resources
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from convlens_server.errors import Status, status_of
from convlens_server.http_call import HttpFailure
from convlens_server.transport.base import Method
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid
from convlens_server.v2.rest_calls import Calls, TooLarge, aside
from convlens_server.v2.rest_changes import MemoryEndpoints, RepositoryEndpoints
from convlens_server.v2.rest_tensors import HEADER_LENGTH, Binary, header_length, read_request, write_response
from convlens_server.v2.tensors import BYTES

HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

_REPOSITORY_MODEL = "/v2/repository/models/{model}"
_MEMORY = "/v2/systemsharedmemory"

# Compressing less does not pay.
_COMPRESSIBLE = 1024
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")

R = TypeVar("R", bound=Message)
Endpoint = Callable[[Request], Awaitable[Response]]


class Rest:
    """The REST side of the protocol.

    It answers from the server's first moment on; requests that need the models are refused until `serve`.

    Args:
        is_ready: Whether health says that the server takes requests.
        is_taking: Whether it does.
        max_bytes: Most bytes of a body, also when it is decompressed.
    """

    def __init__(self, is_ready: Callable[[], bool], is_taking: Callable[[], bool], max_bytes: int) -> None:
        self._is_ready = is_ready
        self._max_bytes = max_bytes
        self._calls = Calls(is_taking, max_bytes)
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def serve(self, methods: tuple[Method, ...]) -> None:
        """Begins to answer by the methods of the service, and by those of aliases."""
        self._calls.serve(methods)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - after it the caller goes on
        """Waits until no request is open; new ones are refused since `is_taking` is false."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)

    def routes(self) -> list[Route]:
        """What an application has to serve."""
        repository, memory = RepositoryEndpoints(self._calls), MemoryEndpoints(self._calls)
        routes = [
            self._route("/v2", GET=self._server),
            self._route("/v2/health/live", GET=self._live),
            self._route("/v2/health/ready", GET=self._ready),
            self._route("/v2/models/stats", GET=self._statistics),
            self._route("/v2/repository/index", POST=self._index),
            self._route(f"{_REPOSITORY_MODEL}/load", POST=repository.load),
            self._route(f"{_REPOSITORY_MODEL}/unload", POST=repository.unload),
            self._route(f"{_REPOSITORY_MODEL}/aliases", GET=repository.aliases),
            self._route(
                f"{_REPOSITORY_MODEL}/aliases/{{alias}}", POST=repository.move_alias, DELETE=repository.remove_alias
            ),
            self._route(f"{_MEMORY}/status", GET=memory.status),
            self._route(f"{_MEMORY}/unregister", POST=memory.unregister),
            self._route(f"{_MEMORY}/region/{{region}}/status", GET=memory.status),
            self._route(f"{_MEMORY}/region/{{region}}/register", POST=memory.register),
            self._route(f"{_MEMORY}/region/{{region}}/unregister", POST=memory.unregister),
            Route("/openapi.json", _openapi),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                self._route(prefix, GET=self._metadata),
                self._route(f"{prefix}/ready", GET=self._model_ready),
                self._route(f"{prefix}/config", GET=self._config),
                self._route(f"{prefix}/stats", GET=self._statistics),
                self._route(f"{prefix}/infer", POST=self._infer),
            ]
        return routes

    def _route(self, path: str, **endpoints: Endpoint) -> Route:
        """A path, with what answers each of its methods."""

        async def handle(request: Request) -> Response:
            self._open += 1
            self._idle.clear()
            try:
                # Starlette has HEAD answered by GET.
                return await endpoints[request.method if request.method != "HEAD" else "GET"](request)
            except HttpFailure as failure:
                return _error(failure.status)
            except TooLarge:
                text = f"the body is over the limit of {self._max_bytes} bytes: see --max-message-bytes"
                return JSONResponse({"error": text}, 413)
            except ClientDisconnect:
                return Response(status_code=499)
            except (UnicodeError, RecursionError) as error:
                return _error(status_of(invalid(f"the request cannot be read: {str(error)[:200]}", "body")))
            except Exception as error:
                return _error(status_of(error))
            finally:
                self._open -= 1
                if self._open == 0:
                    self._idle.set()

        return Route(path, handle, methods=[*endpoints])

    # Answers.

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._is_ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def _server(self, request: Request) -> Response:
        answer = await self._calls.ask(request, "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        return JSONResponse(
            {"name": answer.name, "version": answer.version, "extensions": [*answer.extensions, "binary_tensor_data"]}
        )

    async def _metadata(self, request: Request) -> Response:
        return JSONResponse(_shown(await self._model_metadata(request)))

    async def _model_metadata(self, request: Request) -> pb.ModelMetadataResponse:
        return await self._calls.ask(
            request, "ModelMetadata", _named(pb.ModelMetadataRequest, request), pb.ModelMetadataResponse
        )

    async def _model_ready(self, request: Request) -> Response:
        answer = await self._calls.ask(
            request, "ModelReady", _named(pb.ModelReadyRequest, request), pb.ModelReadyResponse
        )
        body = {"name": request.path_params["model"], "ready": answer.ready}
        return JSONResponse(body, 200 if answer.ready else 503)

    async def _config(self, request: Request) -> Response:
        answer = await self._calls.ask(
            request, "ModelConfig", _named(pb.ModelConfigRequest, request), pb.ModelConfigResponse
        )
        return JSONResponse(_shown(answer.config))

    async def _statistics(self, request: Request) -> Response:
        message = _named(pb.ModelStatisticsRequest, request)
        return JSONResponse(
            _shown(await self._calls.ask(request, "ModelStatistics", message, pb.ModelStatisticsResponse))
        )

    async def _index(self, request: Request) -> Response:
        fields = await self._calls.fields(request)
        ready = fields.get("ready", False)
        if not isinstance(ready, bool) or set(fields) - {"ready"}:
            raise invalid("the request JSON may have 'ready', true or false, and nothing else", "body")
        message = pb.RepositoryIndexRequest(ready=ready)
        answer = await self._calls.ask(request, "RepositoryIndex", message, pb.RepositoryIndexResponse)
        return JSONResponse([_shown(model) for model in answer.models])

    # Inference.

    async def _infer(self, request: Request) -> Response:
        body = await self._calls.body(request)
        json_bytes = header_length(request.headers.get(HEADER_LENGTH), len(body))
        model, version = request.path_params["model"], request.path_params.get("version", "")
        if json_bytes == 0 and HEADER_LENGTH in request.headers:
            message, binary = _whole_body(body, await self._model_metadata(request), version), Binary(all_outputs=True)
        else:
            message, binary = await aside(len(body), lambda: read_request(body, json_bytes, model, version))
        call, content = await self._calls.call(request, "ModelInfer", message)
        try:
            answer = pb.ModelInferResponse.FromString(content)
            text, behind = await aside(len(content), lambda: write_response(answer, binary))
        finally:
            call.closed(cancelled=False)
        headers = {}
        if behind:
            headers[HEADER_LENGTH] = str(len(text))
        content_type = "application/octet-stream" if behind else "application/json"
        return await _compressed(request, b"".join((text, *behind)), content_type, headers)


async def _openapi(request: Request) -> Response:
    content = importlib.resources.files("convlens_server.v2").joinpath("openapi.json").read_bytes()
    return Response(content, media_type="application/json")


def _error(status: Status) -> Response:
    headers = {"Retry-After": "1"} if status.code is grpc.StatusCode.RESOURCE_EXHAUSTED else None
    return JSONResponse({"error": status.text}, HTTP_STATUS.get(status.code, 500), headers)


def _named(kind: type[R], request: Request) -> R:
    parameters = request.path_params
    return kind(name=parameters.get("model", ""), version=parameters.get("version", ""))


def _shown(message: Message) -> dict[str, Any]:
    return _numbers(
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True),
        message.DESCRIPTOR,
    )


def _numbers(fields: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """MessageToDict writes 64-bit integers as texts; Triton as numbers."""
    for field in descriptor.fields:
        value = fields.get(field.name)
        if value is None or field.name not in fields:
            continue
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if isinstance(value, list) else [value]:
                _numbers(each, field.message_type)
        elif field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            fields[field.name] = [int(each) for each in value] if isinstance(value, list) else int(value)
    return fields


def _whole_body(body: bytes, metadata: pb.ModelMetadataResponse, version: str) -> pb.ModelInferRequest:
    """A request whose body is the one input and nothing else: an image file, or the tensor of one image."""
    given = metadata.inputs[0]
    request = pb.ModelInferRequest(model_name=metadata.name, model_version=version)
    if body.startswith(_MAGIC):
        request.inputs.add(name=given.name, datatype=BYTES, shape=[1]).contents.bytes_contents.append(body)
    else:
        request.inputs.add(name=given.name, datatype=given.datatype, shape=[1, *given.shape[1:]])
        request.raw_input_contents.append(body)
    return request


async def _compressed(request: Request, content: bytes, content_type: str, headers: Mapping[str, str]) -> Response:
    accepted = {each.split(";")[0].strip().lower() for each in request.headers.get("accept-encoding", "").split(",")}
    headers = {**headers, "Vary": "Accept-Encoding"}
    if len(content) >= _COMPRESSIBLE:
        # The fastest levels: floats hardly become smaller by any.
        for encoding, compress in (("gzip", _gzip), ("deflate", _deflate)):
            if encoding in accepted:
                plain = content
                content = await aside(len(plain), lambda: compress(plain))  # noqa: B023 - awaited at once
                headers["Content-Encoding"] = encoding
                break
    return Response(content, headers=headers, media_type=content_type)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _deflate(content: bytes) -> bytes:
    return zlib.compress(content, 1)
