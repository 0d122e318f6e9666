"""Traces requests: which, and what is known of them when they end.

A request that is traced carries a `Trace`, to which whoever does a part of its work adds that when it is over. When the
request ends, spans.py gets it, and makes OpenTelemetry's spans of many at once. A request that is not traced costs a
look at its metadata and a random number: 0.2 µs.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import grpc

from convlens_server.transport.base import Call, Method

Value: TypeAlias = str | int | float | tuple[str, ...]

_PARENT = "traceparent"
# Of W3C's versions to come too, which may have more at its end. Zeros alone are no identity.
_TRACEPARENT = re.compile(
    "(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?", re.DOTALL
)
# What else of a caller's metadata belongs to its context.
_CONTEXT = (_PARENT, "tracestate")


class TracingError(Exception):
    """Tracing was asked for and cannot be done here; the text says why and what to do."""


class Part(NamedTuple):
    """A part of a request's way.

    Attributes:
        name: "decode", "queue", "compute" or "lens".
        began: Seconds of `time.monotonic()`.
        ended: The same.
        attributes: What is to be said of it.
    """

    name: str
    began: float
    ended: float
    attributes: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that was traced and has ended just now.

    Attributes:
        method: Full name, "/package.Service/Method".
        request_id: The caller's or ours.
        context: The caller's trace, as metadata; empty if there is none.
        code: The status that the caller gets.
        began: When it came, seconds of `time.monotonic()`.
        ended: When it was answered, the same.
        attributes: What is to be said of it.
        parts: Of its way.
    """

    method: str
    request_id: str
    context: Mapping[str, str]
    code: grpc.StatusCode
    began: float
    ended: float
    attributes: Mapping[str, Value]
    parts: Sequence[Part]


class Trace:
    """One request that is traced. Thread-safe; what comes after its end is ignored.

    Args:
        call: The request's call.
        take: Takes what is known of it at its end.
    """

    def __init__(self, call: Call, take: Callable[[Ended], None]) -> None:
        self._take = take
        self._began = time.monotonic()
        self._method = call.method
        self._request_id = call.request_id
        self._context = {key: value for key, value in call.metadata if key in _CONTEXT and isinstance(value, str)}
        self._attributes: dict[str, Value] = {}
        self._parts: list[Part] = []
        self._lock = threading.Lock()
        self._ended = False

    def about(self, **attributes: Value) -> None:
        """Says what the request is about."""
        self._attributes.update(attributes)

    def span(self, name: str, began: float, ended: float, **attributes: Value) -> None:
        """Adds a `Part`."""
        self._parts.append(Part(name, began, ended, attributes))

    def end(self, code: grpc.StatusCode) -> None:
        """Ends the request with the status that its caller gets; only the first time counts."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._take(
            Ended(
                self._method,
                self._request_id,
                self._context,
                code,
                self._began,
                time.monotonic(),
                self._attributes.copy(),
                self._parts.copy(),
            )
        )


class Tracing:
    """Chooses the requests that are traced.

    A caller that sends a W3C `traceparent` decides itself whether its request is traced, by that header's flag, and the
    spans are then part of its trace; of all other requests a share is traced, chosen by chance.

    Args:
        share: Of the requests without a caller's trace, 0 … 1.
        endpoint: URL of the OpenTelemetry collector that gets the spans.
        device: Where models run.

    Raises:
        TracingError: OpenTelemetry is not installed.
    """

    def __init__(self, share: float, endpoint: str, device: str) -> None:
        try:
            from convlens_server.spans import Spans
        except ModuleNotFoundError as error:
            raise TracingError(
                f"--trace-endpoint needs OpenTelemetry ({error}): pip install 'convlens[tracing]'"
            ) from None
        self._spans = Spans(endpoint, device)
        self._share = share

    def traced(self, methods: Iterable[Method]) -> tuple[Method, ...]:
        """The same methods, whose calls get a `Trace` where they are to be traced."""
        return tuple(self._traced(method) for method in methods)

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._spans.close()

    def _traced(self, method: Method) -> Method:
        handle = method.handle

        def begin(data: bytes, call: Call) -> None:
            call.trace = self._trace(call)
            handle(data, call)

        return replace(method, handle=begin)

    def _trace(self, call: Call) -> Trace | None:
        wanted = None
        for key, value in call.metadata:
            if key == _PARENT and isinstance(value, str):
                wanted = is_sampled(value)
                break
        if wanted is None:
            wanted = random.random() < self._share
        return Trace(call, self._spans.take) if wanted else None


def is_sampled(traceparent: str) -> bool | None:
    """Whether a caller's "00-<trace>-<span>-<flags>" says that its trace is recorded; None if it is none."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return bool(int(match[1], 16) & 1) if match else None
