"""What `Client` asks through: a channel, and calls that are tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import grpc

from convlens._channel import Attempts, Endpoint
from convlens._errors import Error
from convlens._reader import Reader
from convlens.v1.convlens_pb2_grpc import ConvLensStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")


class Connection:
    """A channel to a server. Thread-safe.

    Args:
        endpoint: Where and how.

    Attributes:
        endpoint: As given.
        stub: Of the service.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._channel = (
            grpc.secure_channel(endpoint.address, endpoint.credentials, endpoint.options)
            if endpoint.credentials
            else grpc.insecure_channel(endpoint.address, endpoint.options)
        )
        self.stub = ConvLensStub(self._channel)
        self._closed = False

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
        refusal: Error | None = None,
    ) -> _Response:
        """The answer to a request.

        Args:
            method: Of the stub.
            request: Of its type.
            timeout: Seconds, repetitions included; None means the client's.
            refusal: How the request was refused before, so that this is another try.
        """
        metadata = self.endpoint.metadata
        return self.repeat(lambda left: method(request, timeout=left, metadata=metadata), timeout, refusal)

    def read(
        self,
        method: grpc.UnaryStreamMultiCallable[_Request, _Response],
        request: _Request,
        make_reader: Callable[[], Reader[_Response, _Result]],
        timeout: float | None,
    ) -> _Result:
        """What a reader makes of the stream that answers a request; every try has a reader of its own."""

        def attempt(left: float) -> _Result:
            reader = make_reader()
            call = method(request, timeout=left, metadata=self.endpoint.metadata)
            try:
                messages: Iterable[_Response] = call
                for message in messages:
                    reader.add(message)
            finally:
                call.cancel()
            return reader.result()

        return self.repeat(attempt, timeout)

    def repeat(
        self, attempt: Callable[[float], _Result], timeout: float | None, refusal: Error | None = None
    ) -> _Result:
        """Makes attempts, each told the seconds left, until one succeeds; after a refusal, first waits as it says."""
        attempts = Attempts(self.endpoint.seconds(timeout))
        while True:
            if refusal is not None:
                time.sleep(attempts.pause(refusal))
            self._check_open()
            try:
                return attempt(attempts.remaining())
            except grpc.RpcError as failure:
                refusal = self.endpoint.error(failure)
            except ValueError:
                # What grpc raises on a channel that another thread has just closed.
                self._check_open()
                raise

    def close(self) -> None:
        """Ends the calls under way. May be called twice."""
        self._closed = True
        self._channel.close()

    def _check_open(self) -> None:
        if self._closed:
            raise self.endpoint.closed() from None
