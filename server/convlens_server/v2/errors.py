"""Failures in the words that Triton's clients and tests look for."""

from __future__ import annotations

import grpc

from convlens_server.errors import InvalidRequest, ModelNotReady, NotFound, QueueFull, ServiceError, shown


class NotAtReadyState(ServiceError):  # noqa: N818 - as in convlens_server.errors
    """The version is there, but is being loaded, or failed to."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ModelNotReady.reason


class AlreadyExists(ServiceError):  # noqa: N818
    """The name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class SharedMemoryFailed(ServiceError):  # noqa: N818
    """A region of shared memory cannot be read or written."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "SHARED_MEMORY"


def invalid(text: str, field: str, reason: str = "", **metadata: object) -> InvalidRequest:
    """An InvalidRequest."""
    return InvalidRequest(text, reason=reason, field=field, metadata=metadata)


def translated(error: BaseException, model: str = "", version: str = "") -> BaseException:
    """An exception in Triton's words where it has some.

    Args:
        error: Of the repository or the batcher; anything else stays as it is.
        model: That the request named.
        version: That the request named; empty for the default.
    """
    if not isinstance(error, ServiceError):
        return error
    kind: type[ServiceError] = type(error)
    named = f"Request for unknown model: {shown(model)!r}" + (f" version {shown(version)}" if version else "")
    if isinstance(error, NotFound) and error.reason == "MODEL_NOT_FOUND":
        text = f"Request for unknown model: {shown(model)!r} is not found"
    elif isinstance(error, NotFound) and error.reason == "VERSION_NOT_FOUND":
        text = f"{named} is not found: {error}"
    elif isinstance(error, ModelNotReady):
        kind, text = NotAtReadyState, f"{named} is not at ready state: {error}"
    elif isinstance(error, QueueFull):
        text = f"Exceeds maximum queue size: {error}"
    else:
        return error
    return kind(text, reason=error.reason, field=error.field, metadata=error.metadata, retry_after=error.retry_after)
