"""grpc.health.v1.Health: whether the server takes requests."""

from __future__ import annotations

import threading
from collections.abc import Collection

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from convlens_server.errors import Draining, InvalidRequest, NotFound, near, shown
from convlens_server.transport.base import Call, Method

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """Answers Check and Watch for the server ("") and for each of its services; SERVING until `drain`.

    Args:
        services: Full names of the services.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = ("", *services)
        self._lock = threading.Lock()
        self._watchers: set[Call] = set()
        self.serving = True

    def methods(self) -> tuple[Method, ...]:
        """What a transport has to serve."""
        return (Method(f"/{SERVICE}/Check", self._check), Method(f"/{SERVICE}/Watch", self._watch, streams=True))

    def drain(self) -> None:
        """Says NOT_SERVING from now on, to watchers at once."""
        with self._lock:
            self.serving = False
            watchers, self._watchers = self._watchers, set()
        for call in watchers:
            call.send(self._status())

    def _check(self, data: bytes, call: Call) -> None:
        service = _service(data)
        if service not in self._services:
            raise NotFound(
                f"service {shown(service)!r} is unknown{near(shown(service), self._services[1:])}",
                reason="SERVICE_NOT_FOUND",
                field="service",
            )
        call.reply(self._status())

    def _watch(self, data: bytes, call: Call) -> None:
        # A service may come to be later, the protocol says: the watcher of an unknown one is told so, and stays.
        known = _service(data) in self._services
        call.on_close = lambda: self._forget(call)
        call.on_drain = lambda: call.fail(Draining("the server is shutting down: watch another"))
        with self._lock:
            if known and self.serving:
                self._watchers.add(call)
            status = self._status() if known else _encoded(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            call.send(status)

    def _forget(self, call: Call) -> None:
        with self._lock:
            self._watchers.discard(call)

    def _status(self) -> bytes:
        response = health_pb2.HealthCheckResponse
        return _encoded(response.SERVING if self.serving else response.NOT_SERVING)


def _encoded(status: health_pb2.HealthCheckResponse.ServingStatus) -> bytes:
    content: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return content


def _service(data: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(data).service)
    except DecodeError:
        raise InvalidRequest("the message is not a HealthCheckRequest", reason="NOT_A_MESSAGE") from None
