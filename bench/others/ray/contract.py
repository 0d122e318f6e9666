"""The gRPC method of the Ray Serve application: bytes in, bytes out."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue


def add_to_server(servicer: Any, server: Any) -> None:
    """What Ray Serve asks for: as in the code that is generated from a contract."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Classify, request_deserializer=BytesValue.FromString, response_serializer=BytesValue.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Ray", {"Classify": handler}),))
