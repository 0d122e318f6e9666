"""grpc.reflection: lets tools ask which services and messages there are."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from convlens_server.errors import OK, InvalidRequest
from convlens_server.transport.base import Call, Method

# The messages of both are the same on the wire; newer tools ask for v1 first.
SERVICES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)

_WINDOW = 16


def reflection_methods(services: Collection[str]) -> tuple[Method, ...]:
    """What a transport has to serve so that these services, given by their full names, can be looked at."""
    servicer = reflection.ReflectionServicer((*services, *SERVICES))

    def handle(data: bytes, call: Call) -> None:
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(data)
        except DecodeError:
            raise InvalidRequest("the message is not a ServerReflectionRequest", reason="NOT_A_MESSAGE") from None
        for response in servicer.ServerReflectionInfo(iter((request,)), None):
            call.send(response.SerializeToString())

    def half_close(call: Call) -> None:
        call.finish(OK)

    def method(service: str) -> Method:
        return Method(f"/{service}/ServerReflectionInfo", handle, streams=True, half_close=half_close, window=_WINDOW)

    return tuple(method(service) for service in SERVICES)
