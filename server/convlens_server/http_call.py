"""Calls that come over HTTP instead of gRPC: the same methods, asked on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from convlens_server.errors import OK, Status
from convlens_server.transport.aio import LoopCall
from convlens_server.transport.base import Method, dispatch


class HttpFailure(Exception):  # noqa: N818 - what the call ended in, not a defect
    """The call ended with a status that is not OK."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.text)
        self.status = status


class HttpContext:
    """Tells of a caller over HTTP, as grpc.aio's context of one over gRPC.

    Args:
        headers: Of the request.
        address: Of the caller; None if that is not known.
        seconds: That the caller waits; None if it does not say.
    """

    def __init__(self, headers: Sequence[tuple[str, str]], address: str | None, seconds: float | None = None) -> None:
        self._headers = headers
        self._address = address
        self._seconds = seconds

    def time_remaining(self) -> float | None:
        """Seconds that the caller waits."""
        return self._seconds

    def peer(self) -> str:
        """The caller's address."""
        return f"http:{self._address or 'unknown'}"

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """The headers."""
        return self._headers


def open_call(method: Method, context: HttpContext) -> LoopCall:
    """A call of a method on the running event loop; `closed` must be called when it is over."""
    return LoopCall(method.name, context, asyncio.get_running_loop())


async def answer(method: Method, message: bytes, call: LoopCall, max_message_bytes: int) -> bytes:
    """Makes a unary call.

    Returns:
        The response message.

    Raises:
        HttpFailure: It ended otherwise.
    """
    dispatch(method, message, call, max_message_bytes)
    response = b""
    async for part in call.outgoing():
        response = part
    if call.status is not None and call.status.code is not OK.code:
        raise HttpFailure(call.status)
    return response
