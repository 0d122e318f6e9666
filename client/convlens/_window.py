"""The images of a stream that are between sending and yielding: their order, their answers, their patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from convlens._answers import outcome
from convlens._errors import DeadlineExceeded, ServerError
from convlens._types import Outcome
from convlens.v1 import convlens_pb2 as pb


class Window:
    """Numbers the requests, and puts the answers back into the order sent. Does no input or output of its own.

    Args:
        timeout: Seconds that the stream may go without an answer while images are in flight.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        # One thread sends while another one receives.
        self._lock = threading.Lock()
        self._requests: dict[int, pb.ClassifyRequest] = {}
        self._unanswered = 0
        self._since = 0.0
        self._outcomes: dict[int, Outcome] = {}
        self._next = 0

    def sent(self, position: int, request: pb.ClassifyRequest) -> pb.ClassifyStreamRequest:
        """The message for the image at a position."""
        with self._lock:
            if not self._unanswered:
                self._since = time.monotonic()
            self._unanswered += 1
            self._requests[position] = request
        return pb.ClassifyStreamRequest(id=position, request=request)

    def arrived(
        self, event: pb.ClassifyStreamResponse | Outcome
    ) -> Iterator[tuple[Outcome, pb.ClassifyRequest | None]]:
        """Takes an answer, or the outcome of an image that could not be sent.

        Returns:
            The outcomes whose turn it now is, each with its request; None where it was not sent.

        Raises:
            ServerError: The answer is to nothing that is in flight.
        """
        if isinstance(event, pb.ClassifyStreamResponse):
            with self._lock:
                request = None if event.id in self._outcomes else self._requests.get(event.id)
                self._unanswered -= 1
                self._since = time.monotonic()
            event = outcome(event, request)
        self._outcomes[event.position] = event
        while self._next in self._outcomes:
            yield self._outcomes.pop(self._next), self._requests.pop(self._next, None)
            self._next += 1

    def patience(self, waiting_since: float) -> float:
        """Seconds to wait for the next event before looking again.

        Args:
            waiting_since: When the caller began to wait, of `time.monotonic`. The time that it took to use an earlier
                outcome does not count.

        Raises:
            DeadlineExceeded: Images are in flight, and there was no answer for `timeout` seconds.
        """
        with self._lock:
            if not self._unanswered:
                return self._timeout
            left = max(self._since, waiting_since) + self._timeout - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(
                    f"{self._unanswered} images of the stream are in flight, and there was no answer for "
                    f"{self._timeout:g} s: give a longer timeout"
                )
            return left

    def ended(self) -> None:
        """The server has ended the stream. Raises ServerError where answers are missing."""
        if self._unanswered:
            raise ServerError(
                f"the server ended the stream with {self._unanswered} images unanswered", reason="BROKEN_ANSWER"
            )
