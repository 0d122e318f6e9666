"""What OpenTelemetry makes of a request that was traced. The only module that imports it, and itself an extra's."""

from __future__ import annotations

import collections
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from convlens_server.tracing import Ended, Value

log = logging.getLogger(__name__)

# Spans are made so often, or when so many requests wait for it; of more than the last what comes is forgotten.
_EVERY_SECONDS = 2.0
_ENOUGH = 256
_MOST_WAITING = 2048
# Seconds that the collector has to take spans, before they are lost, unless OTLP's own variable says otherwise; at the
# server's end, which this must not hold up, all that is left has so long.
_TIMEOUT = "OTEL_EXPORTER_OTLP_TIMEOUT"
_SECONDS = 3.0
# The statuses that OpenTelemetry's conventions for gRPC servers count as errors.
_ERRORS = frozenset({
    grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS,
})  # fmt: skip
_CALLER = TraceContextTextMapPropagator()


class Spans:
    """Makes spans, and sends them to a collector, in threads of its own.

    Not where a request ends: what runs for one request in a hundred finds nothing of itself in the caches. It cost 3 %
    of the CPU time with 1 % of them traced, and 100 % with all; so it costs 0 to 2 % and 80 % (bench/tracing.py).

    Args:
        endpoint: URL of the collector's OTLP/gRPC port, "http://host:4317", or https. Headers and certificates come
            from OTLP's own variables, such as OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_CERTIFICATE.
        device: Where models run, for the spans' resource.
    """

    def __init__(self, endpoint: str, device: str) -> None:
        release = version("convlens")
        own = {
            "service.name": "convlens",
            "service.version": release,
            "service.instance.id": socket.gethostname(),
            "convlens.device": device,
        }
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first, as everywhere.
        resource = Resource(own).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=None if _TIMEOUT in os.environ else _SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("convlens", release)
        self._waiting: collections.deque[Ended] = collections.deque()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="spans", daemon=True)
        self._thread.start()

    def take(self, ended: Ended) -> None:
        """Takes a request that has ended; forgets it if too many wait."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(ended)
        if len(self._waiting) >= _ENOUGH:
            self._wake.set()

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self._provider.shutdown()

    def _work(self) -> None:
        closed = False
        while not closed:
            self._wake.wait(_EVERY_SECONDS)
            self._wake.clear()
            # What comes after that has come too late.
            closed = self._closed
            while self._waiting:
                try:
                    self._make(self._waiting.popleft())
                except Exception:
                    log.exception("a request could not be traced")

    def _make(self, ended: Ended) -> None:
        """Makes the spans of a request: one of all of it, and those of its parts within."""
        # Anew for each request: the clock of the day may be set.
        epoch = time.time() - time.monotonic()
        name = ended.method[1:]
        service, _, method = name.rpartition("/")
        attributes: dict[str, Value] = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "rpc.grpc.status_code": ended.code.value[0],
            "convlens.request_id": ended.request_id,
            **_prefixed(ended.attributes),
        }
        caller = _CALLER.extract(ended.context) if ended.context else Context()
        start = _nanoseconds(epoch + ended.began)
        root = self._tracer.start_span(name, caller, SpanKind.SERVER, attributes, start_time=start)
        if ended.code in _ERRORS:
            root.set_status(StatusCode.ERROR, ended.code.name)
        inside = set_span_in_context(root, caller)
        for part in ended.parts:
            child = self._tracer.start_span(
                part.name, inside, attributes=_prefixed(part.attributes), start_time=_nanoseconds(epoch + part.began)
            )
            child.end(_nanoseconds(epoch + part.ended))
        root.end(_nanoseconds(epoch + ended.ended))


def _prefixed(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"convlens.{name}": value for name, value in attributes.items()}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
