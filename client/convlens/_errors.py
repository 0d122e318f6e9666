"""Every way a call can fail. All share one root and carry what the server said; grpc's own errors never come out.

    convlens.Error
    ├── InvalidRequest (ValueError)         INVALID_ARGUMENT, OUT_OF_RANGE; or found here, before any call
    │   └── InvalidImage                    an image of it cannot be sent, or the server cannot use it
    ├── NotFound (LookupError)              NOT_FOUND            no such model, version or layer
    ├── ModelNotReady                       FAILED_PRECONDITION  the version failed to load
    ├── ResourceExhausted                   RESOURCE_EXHAUSTED   the queue is full, or a message too large
    ├── DeadlineExceeded (TimeoutError)     DEADLINE_EXCEEDED    no answer within the timeout
    ├── Unavailable (ConnectionError)       UNAVAILABLE          nobody answers there, or the server drains
    ├── AccessDenied                        UNAUTHENTICATED, PERMISSION_DENIED
    ├── Cancelled                           CANCELLED            the call was cancelled, e.g. by `close`
    ├── Unsupported                         UNIMPLEMENTED        the server has no such method
    ├── ServerError                         INTERNAL, UNKNOWN, DATA_LOSS, ABORTED, ALREADY_EXISTS; or an answer
    │                                       that breaks the contract
    └── UnusableClient (RuntimeError)       the client is closed, or belongs to another event loop

Every status of gRPC has its place here; `convlens.Error` catches them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


class Error(Exception):
    """The root. Its text is for people; the attributes are for programs.

    Attributes:
        code: The gRPC status code; None where no call was made.
        reason: Upper snake case, e.g. "QUEUE_FULL"; empty if the server gave none.
        field: The request's field at fault, e.g. "top_k"; empty if none is.
        metadata: Names and values in the text, as the server gave them.
        request_id: The server's name for the call, to find it in its log; empty if it gave none.
        retry_after: Seconds after which trying again makes sense; None if the server does not say that it does.
    """

    def __init__(
        self,
        text: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.field = field
        self.metadata = dict(metadata or {})
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidRequest(Error, ValueError):  # noqa: N818 - the names are those of the server's tree
    """An argument is wrong; the text names it, its value and the cure. Sending it again will not help."""


class InvalidImage(InvalidRequest):
    """An image cannot be sent, or the server cannot use it."""


class NotFound(Error, LookupError):  # noqa: N818
    """The server has no such model, version or layer; the text names near matches."""


class ModelNotReady(Error):  # noqa: N818
    """The version stands in the server's repository, but failed to load."""


class ResourceExhausted(Error):  # noqa: N818
    """The server's queue stayed full until the deadline, or a message is over a limit."""


class DeadlineExceeded(Error, TimeoutError):  # noqa: N818
    """No answer came within the timeout."""


class Unavailable(Error, ConnectionError):  # noqa: N818
    """The server cannot be reached, or drains, and did so at every attempt."""


class AccessDenied(Error):  # noqa: N818
    """The server, or a proxy before it, does not accept the credentials."""


class Cancelled(Error):  # noqa: N818
    """The call was cancelled before its answer, e.g. because the client was closed."""


class Unsupported(Error):  # noqa: N818
    """The server does not have this method: it is another server, or an older one."""


class ServerError(Error):
    """The server failed, or its answer breaks the contract."""


class UnusableClient(Error, RuntimeError):  # noqa: N818
    """The client is closed, or belongs to another event loop."""


_BY_CODE: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: ModelNotReady,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> Error:
    """The exception for a google.rpc.Status: the tree of the module's docstring."""
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    request = error_details_pb2.RequestInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        detail.Unpack(request)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    field = bad.field_violations[0].field if bad.field_violations else ""
    kind = _BY_CODE.get(code, ServerError)
    if kind is InvalidRequest and field.partition(".")[0] == "images":
        kind = InvalidImage
    return kind(
        status.message or code.name.replace("_", " ").lower(),
        code=code,
        reason=info.reason,
        field=field,
        metadata=info.metadata,
        request_id=request.request_id,
        retry_after=retry_after,
    )


def from_rpc(failure: grpc.RpcError, target: str) -> Error:
    """The exception for a failed call.

    Args:
        failure: From grpc or grpc.aio: has `code`, `details` and `trailing_metadata`.
        target: The server's address, to name it where grpc, and not the server, says what is wrong.
    """
    code: grpc.StatusCode = failure.code()
    status = status_pb2.Status()
    pairs: Any = failure.trailing_metadata() or ()
    # Not dict(pairs): the metadata of grpc.aio has `keys` in grpcio 1.76, and they give pairs.
    details = next((value for key, value in pairs if key == _DETAILS), b"")
    try:
        status.ParseFromString(details)
    except DecodeError:
        status.Clear()
    if status.code != code.value[0]:
        # Written by grpc itself or by a proxy.
        text = failure.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            text = f"no answer from {target} within the timeout: give a longer one"
        elif code is grpc.StatusCode.UNAVAILABLE:
            text = f"cannot reach {target}: {text}"
        status = status_pb2.Status(code=code.value[0], message=text)
    return from_status(status)
