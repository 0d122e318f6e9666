"""Sends the messages of a streaming answer no faster than its caller reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from google.protobuf.message import Message

from convlens_server.errors import OK, Cancelled, ServiceError
from convlens_server.pool import BoundedPool
from convlens_server.transport.base import Call

# A caller's own limit is 4 MiB unless it sets another.
_CHUNK_BYTES = 2**20
# Sent before the caller has to have read: enough that the pool is not asked for each chunk.
_AHEAD_BYTES = 4 * _CHUNK_BYTES


def chunks(data: memoryview) -> Iterator[tuple[int, bytes]]:
    """Cuts what is too large for one message: each chunk with where it begins; one, at least, which may be empty."""
    for begin in range(0, max(len(data), 1), _CHUNK_BYTES):
        yield begin, bytes(data[begin : begin + _CHUNK_BYTES])


class Paced:
    """One streaming answer on its way.

    A turn sends what the caller may have unread, and `Call.on_writable` asks for the next one. It may come while a turn
    is still sending, since part of what the turn sent has left; then that turn goes on for another round.

    Args:
        call: The call; its `on_writable` and `on_close` are taken over.
        pool: Runs the turns, and with them what the messages compute.
        messages: What is sent; each is made when its turn comes. What they raise ends the call with that error.
        ended: Called once, when nothing more will be sent: with None after the last message, the error that ended the
            messages, or a `Cancelled` if the caller left.
    """

    def __init__(
        self, call: Call, pool: BoundedPool, messages: Iterator[Message], ended: Callable[[BaseException | None], None]
    ) -> None:
        self._call = call
        self._pool = pool
        self._messages = messages
        self._on_end = ended
        self._lock = threading.Lock()
        self._running = False
        self._again = False
        self._ended = False
        self._gone = False

    def start(self, size: int = 0) -> None:
        """Begins; a pool that refuses the work ends the call with its error.

        Args:
            size: Bytes that the request holds until the first turn has run.
        """
        self._running = True
        self._call.on_close = self._closed
        self._call.on_writable = self._writable
        try:
            self._pool.submit(self._turn, size)
        except ServiceError as error:
            self._end(error)

    def _closed(self) -> None:
        """The call is over; if we did not end it, its caller left."""
        with self._lock:
            self._gone = True
            if self._running:
                return
        self._end(None)

    def _writable(self) -> None:
        with self._lock:
            if self._running:
                self._again = True
                return
            self._running = True
        self._pool.resume(self._turn)

    def _turn(self) -> None:
        more = True
        while more:
            more = self._send()
            with self._lock:
                if self._gone:
                    more = False
                elif more and not self._again:
                    self._running = False
                    return
                self._again = False
        self._end(None)

    def _send(self) -> bool:
        """Sends messages until enough are on the way. Whether there may be more."""
        sent = 0
        try:
            while sent < _AHEAD_BYTES and not self._gone:
                message = next(self._messages, None)
                if message is None:
                    return False
                data = message.SerializeToString()
                sent += len(data)
                self._call.send(data)
        except Exception as error:
            self._end(error)
            return False
        return True

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._messages = iter(())
        if error is None and self._gone:
            error = Cancelled("the caller left")
        self._on_end(error)
        if error is None:
            self._call.finish(OK)
        else:
            self._call.fail(error)
