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

from convlens_server.errors import InvalidRequest, Status, shown, status_of
from convlens_server.http_call import HttpContext, HttpFailure, answer, open_call
from convlens_server.transport.aio import LoopCall
from convlens_server.transport.base import Method, draining
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid
from convlens_server.v2.rest_tensors import (
    HEADER_LENGTH,
    Binary,
    document,
    header_length,
    read_request,
    write_response,
)
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

# Above this a body is read and an answer written in a thread, so that nothing else on the event loop waits for it.
_LARGE = 64 * 1024
# Compressing less does not pay.
_COMPRESSIBLE = 1024
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")

R = TypeVar("R", bound=Message)
T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


class _TooLarge(Exception):  # noqa: N818
    """The body is over the limit."""


class Rest:
    """The REST side of the protocol.

    It answers from the server's first moment on; requests that need the models are refused until `serve`.

    Args:
        is_ready: Whether the server takes requests.
        max_bytes: Most bytes of a body, also when it is decompressed.
    """

    def __init__(self, is_ready: Callable[[], bool], max_bytes: int) -> None:
        self._is_ready = is_ready
        self._max_bytes = max_bytes
        self._methods: dict[str, Method] = {}
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def serve(self, methods: tuple[Method, ...]) -> None:
        """Begins to answer by the methods of the gRPC service."""
        self._methods = {method.name.rpartition("/")[2]: method for method in methods}

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - after it the caller goes on
        """Waits until no request is open; new ones are refused since `is_ready` is false."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)

    def routes(self) -> list[Route]:
        """What an application has to serve."""
        routes = [
            self._route("/v2", self._server),
            self._route("/v2/health/live", self._live),
            self._route("/v2/health/ready", self._ready),
            self._route("/v2/models/stats", self._statistics),
            self._route("/v2/repository/index", self._index, "POST"),
            self._route("/v2/repository/models/{model}/load", self._load, "POST"),
            self._route("/v2/repository/models/{model}/unload", self._unload, "POST"),
            self._route("/v2/systemsharedmemory/status", self._memory_status),
            self._route("/v2/systemsharedmemory/unregister", self._memory_unregister, "POST"),
            self._route("/v2/systemsharedmemory/region/{region}/status", self._memory_status),
            self._route("/v2/systemsharedmemory/region/{region}/register", self._memory_register, "POST"),
            self._route("/v2/systemsharedmemory/region/{region}/unregister", self._memory_unregister, "POST"),
            Route("/openapi.json", _openapi),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                self._route(prefix, self._metadata),
                self._route(f"{prefix}/ready", self._model_ready),
                self._route(f"{prefix}/config", self._config),
                self._route(f"{prefix}/stats", self._statistics),
                self._route(f"{prefix}/infer", self._infer, "POST"),
            ]
        return routes

    def _route(self, path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        async def handle(request: Request) -> Response:
            self._open += 1
            self._idle.clear()
            try:
                return await endpoint(request)
            except HttpFailure as failure:
                return _error(failure.status)
            except _TooLarge:
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

        return Route(path, handle, methods=[method])

    # Answers.

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._is_ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def _server(self, request: Request) -> Response:
        answer = await self._ask(request, "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        return JSONResponse(
            {"name": answer.name, "version": answer.version, "extensions": [*answer.extensions, "binary_tensor_data"]}
        )

    async def _metadata(self, request: Request) -> Response:
        return JSONResponse(_shown(await self._model_metadata(request)))

    async def _model_metadata(self, request: Request) -> pb.ModelMetadataResponse:
        return await self._ask(
            request, "ModelMetadata", _named(pb.ModelMetadataRequest, request), pb.ModelMetadataResponse
        )

    async def _model_ready(self, request: Request) -> Response:
        answer = await self._ask(request, "ModelReady", _named(pb.ModelReadyRequest, request), pb.ModelReadyResponse)
        body = {"name": request.path_params["model"], "ready": answer.ready}
        return JSONResponse(body, 200 if answer.ready else 503)

    async def _config(self, request: Request) -> Response:
        answer = await self._ask(request, "ModelConfig", _named(pb.ModelConfigRequest, request), pb.ModelConfigResponse)
        return JSONResponse(_shown(answer.config))

    async def _statistics(self, request: Request) -> Response:
        message = _named(pb.ModelStatisticsRequest, request)
        return JSONResponse(_shown(await self._ask(request, "ModelStatistics", message, pb.ModelStatisticsResponse)))

    async def _index(self, request: Request) -> Response:
        fields = document(await self._body(request))
        ready = fields.get("ready", False)
        if not isinstance(ready, bool) or set(fields) - {"ready"}:
            raise invalid("the request JSON may have 'ready', true or false, and nothing else", "body")
        message = pb.RepositoryIndexRequest(ready=ready)
        answer = await self._ask(request, "RepositoryIndex", message, pb.RepositoryIndexResponse)
        return JSONResponse([_shown(model) for model in answer.models])

    async def _load(self, request: Request) -> Response:
        await self._no_parameters(request)
        message = pb.RepositoryModelLoadRequest(model_name=request.path_params["model"])
        await self._ask(request, "RepositoryModelLoad", message, pb.RepositoryModelLoadResponse)
        return JSONResponse({})

    async def _unload(self, request: Request) -> Response:
        await self._no_parameters(request, "unload_dependents")
        message = pb.RepositoryModelUnloadRequest(model_name=request.path_params["model"])
        await self._ask(request, "RepositoryModelUnload", message, pb.RepositoryModelUnloadResponse)
        return JSONResponse({})

    async def _no_parameters(self, request: Request, *known: str) -> None:
        fields = document(await self._body(request))
        parameters = fields.get("parameters", {})
        if not isinstance(parameters, dict) or set(fields) - {"parameters"} or set(parameters) - set(known):
            raise invalid(
                "the request JSON may have no parameters"
                + (f" but {', '.join(known)}" if known else "")
                + ": models come from the repository, with its config.pbtxt",
                "body",
            )

    async def _memory_status(self, request: Request) -> Response:
        message = pb.SystemSharedMemoryStatusRequest(name=request.path_params.get("region", ""))
        answer = await self._ask(request, "SystemSharedMemoryStatus", message, pb.SystemSharedMemoryStatusResponse)
        return JSONResponse([
            {"name": each.name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size}
            for each in answer.regions.values()
        ])  # fmt: skip

    async def _memory_register(self, request: Request) -> Response:
        fields = document(await self._body(request))
        key, offset, size = fields.get("key"), fields.get("offset", 0), fields.get("byte_size", -1)
        numbers = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**64 for n in (offset, size))
        if not isinstance(key, str) or not numbers or set(fields) - {"key", "offset", "byte_size"}:
            raise invalid("the request JSON must have 'key', a text, and 'byte_size', a number; 'offset' is 0", "body")
        message = pb.SystemSharedMemoryRegisterRequest(
            name=request.path_params["region"], key=key, offset=offset, byte_size=size
        )
        await self._ask(request, "SystemSharedMemoryRegister", message, pb.SystemSharedMemoryRegisterResponse)
        return JSONResponse({})

    async def _memory_unregister(self, request: Request) -> Response:
        message = pb.SystemSharedMemoryUnregisterRequest(name=request.path_params.get("region", ""))
        await self._ask(request, "SystemSharedMemoryUnregister", message, pb.SystemSharedMemoryUnregisterResponse)
        return JSONResponse({})

    # Inference.

    async def _infer(self, request: Request) -> Response:
        body = await self._body(request)
        json_bytes = header_length(request.headers.get(HEADER_LENGTH), len(body))
        model, version = request.path_params["model"], request.path_params.get("version", "")
        if json_bytes == 0 and HEADER_LENGTH in request.headers:
            message, binary = _whole_body(body, await self._model_metadata(request), version), Binary(all_outputs=True)
        else:
            message, binary = await _aside(len(body), lambda: read_request(body, json_bytes, model, version))
        call, content = await self._called(request, "ModelInfer", message)
        try:
            answer = pb.ModelInferResponse.FromString(content)
            text, behind = await _aside(len(content), lambda: write_response(answer, binary))
        finally:
            call.closed(cancelled=False)
        headers = {}
        if behind:
            headers[HEADER_LENGTH] = str(len(text))
        content_type = "application/octet-stream" if behind else "application/json"
        return await _compressed(request, b"".join((text, *behind)), content_type, headers)

    async def _called(self, request: Request, method: str, message: Message) -> tuple[LoopCall, bytes]:
        """Makes a call; the caller of this closes it when the answer is written."""
        if not self._is_ready():
            raise HttpFailure(draining() if self._methods else _STARTING)
        if method not in self._methods:
            raise HttpFailure(_NOT_THERE)
        if not hasattr(request.state, _READ):
            # To its end, so that what comes then is that the caller has left.
            await self._body(request)
        served = self._methods[method]
        client = request.client
        address = f"{client.host}:{client.port}" if client is not None else None
        call = open_call(served, HttpContext(request.headers.items(), address))
        answering = asyncio.ensure_future(answer(served, message.SerializeToString(), call, _ANY_BYTES))
        try:
            # One turn of the loop: what is answered at once needs no watch over the caller.
            await asyncio.sleep(0)
            if not answering.done():
                await _watch(request, call, answering)
            return call, await answering
        except BaseException:
            answering.cancel()
            call.closed(cancelled=True)
            raise

    async def _ask(self, request: Request, method: str, message: Message, kind: type[R]) -> R:
        call, content = await self._called(request, method, message)
        call.closed(cancelled=False)
        return kind.FromString(content)

    async def _body(self, request: Request) -> bytes:
        """The whole body, decompressed. Raises _TooLarge and InvalidRequest."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_bytes:
                raise _TooLarge
            parts.append(part)
        setattr(request.state, _READ, True)
        body = b"".join(parts)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return body
        if encoding not in ("gzip", "deflate"):
            raise invalid(f"Content-Encoding is {shown(encoding)!r}, but must be gzip or deflate", "Content-Encoding")
        return await _aside(len(body), lambda: _decompressed(body, encoding, self._max_bytes))


# The body's size was checked before, and what is made of it is no larger.
_ANY_BYTES = 2**31
_READ = "read"
_STARTING = Status(grpc.StatusCode.UNAVAILABLE, "the server is starting: its models are not loaded yet")
_NOT_THERE = Status(grpc.StatusCode.UNIMPLEMENTED, "shared memory is off: start the server with --allow-shared-memory")


async def _watch(request: Request, call: LoopCall, answering: asyncio.Future[bytes]) -> None:
    """Waits for the answer, and tells the call if its caller leaves before."""
    left = asyncio.ensure_future(request.receive())
    waiting: set[asyncio.Future[Any]] = {answering, left}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if left.done():
        call.cancelled = True
    else:
        left.cancel()


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


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    # 31: gzip. Deflate is meant to have zlib's header, which not everybody writes: 15 or −15.
    for bits in (31,) if encoding == "gzip" else (15, -15):
        decompressor = zlib.decompressobj(bits)
        try:
            content = decompressor.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(content) > limit:
            raise _TooLarge
        if decompressor.eof and not decompressor.unused_data:
            return content
    raise InvalidRequest(f"the body is not {encoding}, or not all of it", field="Content-Encoding")


async def _compressed(request: Request, content: bytes, content_type: str, headers: Mapping[str, str]) -> Response:
    accepted = {each.split(";")[0].strip().lower() for each in request.headers.get("accept-encoding", "").split(",")}
    headers = {**headers, "Vary": "Accept-Encoding"}
    if len(content) >= _COMPRESSIBLE:
        # The fastest levels: floats hardly become smaller by any.
        for encoding, compress in (("gzip", _gzip), ("deflate", _deflate)):
            if encoding in accepted:
                plain = content
                content = await _aside(len(plain), lambda: compress(plain))  # noqa: B023 - awaited at once
                headers["Content-Encoding"] = encoding
                break
    return Response(content, headers=headers, media_type=content_type)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _deflate(content: bytes) -> bytes:
    return zlib.compress(content, 1)


async def _aside(size: int, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if size > _LARGE else work()
