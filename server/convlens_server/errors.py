"""Every way a request can fail, and the one table that turns an exception into a gRPC status.

    ServiceError
    ├── InvalidRequest        INVALID_ARGUMENT     the request is wrong; sending it again will not help
    │   └── InvalidImage                           an image of it is not one, or not one that fits
    ├── NotFound              NOT_FOUND            no such model, version or layer
    ├── ModelNotReady         FAILED_PRECONDITION  the version is there, but failed to load, or was unloaded
    │   └── NotLoaded                              it will be loaded for the request (Repository.when_ready)
    ├── RepositoryRefused     FAILED_PRECONDITION  the repository is not run so that this could be done
    ├── NotApplicable         FAILED_PRECONDITION  the network, or a layer of it, is not such that this could be done
    ├── AliasNotMoved         FAILED_PRECONDITION  its version failed to load, or aliases.json cannot be written
    ├── QueueFull             RESOURCE_EXHAUSTED   refused at once; carries when to try again
    ├── MessageTooLarge       RESOURCE_EXHAUSTED   over the message limit
    ├── DeadlineExceeded      DEADLINE_EXCEEDED    the caller's time ran out before the computation
    ├── Cancelled             CANCELLED            the caller left before the computation
    ├── Unimplemented         UNIMPLEMENTED        no such method
    ├── Draining              UNAVAILABLE          the server is shutting down
    └── EngineFailed          INTERNAL             the engine failed on this batch

    ModelError                                     a model file cannot be served (never reaches a caller as such)

Anything else that a handler raises is INTERNAL "internal error"; its trace goes to the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "convlens"
_TYPE_PREFIX = "type.googleapis.com/google.rpc."

# Most bytes of an error's text, and of each value of its metadata. A client refuses trailers of more than 8 KiB and
# then sees RESOURCE_EXHAUSTED; the text is in them three times, percent-encoded once and in base64 twice.
_MAX_TEXT = 1000
_MAX_VALUE = 200


class ServiceError(Exception):
    """A failed request: a text for people, a reason for programs.

    Attributes:
        code: The gRPC status code.
        reason: ErrorInfo's reason, UPPER_SNAKE_CASE; part of the contract.
        metadata: ErrorInfo's metadata: the names and values in the text, as strings.
        field: The request's field at fault, for BadRequest; empty if none.
        retry_after: Seconds after which to try again, for RetryInfo; None if that will not help.
    """

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init__(
        self,
        text: str,
        *,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.reason = reason or type(self).reason
        self.field = field
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after = retry_after


class InvalidRequest(ServiceError):  # noqa: N818 - the tree's names are the statuses' names
    """The request itself is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class InvalidImage(InvalidRequest):
    """An image of the request cannot be used."""

    reason = "INVALID_IMAGE"


class NotFound(ServiceError):  # noqa: N818
    """The named model, version or layer is not there."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class ModelNotReady(ServiceError):  # noqa: N818
    """The version stands in the repository, but could not be loaded."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_NOT_READY"


class NotLoaded(ModelNotReady):
    """The version is not in memory, but a request for it has it loaded."""

    reason = "NOT_LOADED"


class RepositoryRefused(ServiceError):  # noqa: N818
    """The way in which the repository is run does not allow what was asked for."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_CONTROL"


class NotApplicable(ServiceError):  # noqa: N818
    """The network, or a layer of it, is not such that what was asked for could be done."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_APPLICABLE"


class AliasNotMoved(ServiceError):  # noqa: N818
    """An alias is left where it was."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ALIAS_NOT_MOVED"


class QueueFull(ServiceError):  # noqa: N818
    """The queue is at its bound; nothing was computed."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class MessageTooLarge(ServiceError):  # noqa: N818
    """A message is over the limit."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class DeadlineExceeded(ServiceError):  # noqa: N818
    """The caller's deadline passed before the computation began."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(ServiceError):  # noqa: N818
    """The caller left before the computation began."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class Unimplemented(ServiceError):  # noqa: N818
    """The server has no such method."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "METHOD_NOT_FOUND"


class Draining(ServiceError):  # noqa: N818
    """The server is shutting down and takes no new requests."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"


class EngineFailed(ServiceError):  # noqa: N818
    """The inference session failed on this batch."""

    reason = "ENGINE_FAILED"


class ModelError(Exception):
    """A model file cannot be served; the text names the file, what is wrong and the cure."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends.

    Attributes:
        code: The gRPC status code.
        text: For people; empty for OK.
        details: A serialised google.rpc.Status; empty for OK.
    """

    code: grpc.StatusCode
    text: str = ""
    details: bytes = b""


OK = Status(grpc.StatusCode.OK)


def rpc_status(error: BaseException, request_id: str = "") -> status_pb2.Status:
    """The google.rpc.Status of an exception: the table of the module's docstring."""
    if not isinstance(error, ServiceError):
        error = ServiceError("internal error")
    text = _clipped(str(error), _MAX_TEXT)
    status = status_pb2.Status(code=error.code.value[0], message=text)
    metadata = {key: _clipped(value, _MAX_VALUE) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    status.details.append(_pack("ErrorInfo", info))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=text)
        status.details.append(_pack("BadRequest", error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.append(_pack("RetryInfo", error_details_pb2.RetryInfo(retry_delay=delay)))
    if request_id:
        status.details.append(_pack("RequestInfo", error_details_pb2.RequestInfo(request_id=request_id)))
    return status


def status_of(error: BaseException, request_id: str = "") -> Status:
    """The same as `rpc_status`, in the form in which a transport ends a call."""
    status = rpc_status(error, request_id)
    code = error.code if isinstance(error, ServiceError) else grpc.StatusCode.INTERNAL
    return Status(code, status.message, status.SerializeToString())


def shown(name: str) -> str:
    """A name that a caller sent, as a text may hold it: it may be of any length, and a status has room for 8 KiB."""
    return name if len(name) <= 100 else name[:100] + "…"


def near(name: str, names: Iterable[str]) -> str:
    """The end of a not-found text: ` (did you mean a, b?)`, or what there is, or nothing where there is none."""
    names = list(names)
    if matches := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        return f" (did you mean {', '.join(matches)}?)"
    if not names:
        return ""
    shown = ", ".join(names[:12])
    return f" (there are {shown}{', …' if len(names) > 12 else ''})"


def _clipped(text: str, limit: int) -> str:
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= limit else data[:limit].decode(errors="ignore") + "…"


def _pack(kind: str, message: error_details_pb2.ErrorInfo | object) -> any_pb2.Any:
    return any_pb2.Any(type_url=_TYPE_PREFIX + kind, value=message.SerializeToString())  # type: ignore[union-attr]
