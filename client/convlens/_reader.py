"""What reads a stream of messages, for both clients."""

from __future__ import annotations

from typing import Protocol, TypeVar

_Message = TypeVar("_Message", contravariant=True)
_Result = TypeVar("_Result", covariant=True)


class Reader(Protocol[_Message, _Result]):
    """Makes one result of a stream of messages."""

    def add(self, message: _Message) -> None:
        """Takes the next message. Raises ServerError."""

    def result(self) -> _Result:
        """What came of all messages. Raises ServerError where something is missing."""
