"""`python -m convlens_server.probe`: asks the server of this container whether it serves, for HEALTHCHECK.

It asks grpc.health on CONVLENS_PORT; where that port has TLS, whose certificate is for other names than this one, it
asks /readyz on CONVLENS_HTTP_PORT for the same. Exit code 0: it serves; 1: it does not, and standard output says why.

It speaks HTTP/2 itself, as far as one call needs it: with grpcio it would take 21 MB more of the container's memory and
0.1 s of its processor, every few seconds.
"""

from __future__ import annotations

import os
import socket
import struct

_SECONDS = 3.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
# grpc.health.v1.HealthCheckResponse{status: SERVING}, with gRPC's length before it.
_SERVING = b"\0\0\0\0\2\x08\x01"


def main() -> int:
    """Asks, and returns the exit code."""
    try:
        if os.environ.get("CONVLENS_TLS_CERTIFICATE"):
            problem = ask_http(int(os.environ.get("CONVLENS_HTTP_PORT") or 8000))
        else:
            problem = ask_grpc(int(os.environ.get("CONVLENS_PORT") or 8001))
    except (OSError, ValueError) as error:
        problem = str(error)
    print(problem or "serving")
    return 1 if problem else 0


def ask_grpc(port: int) -> str:
    """Asks grpc.health on a port of this host; empty, or why it does not serve. Raises OSError."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": f"localhost:{port}",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    with socket.create_connection(("127.0.0.1", port), _SECONDS) as connection:
        connection.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0)
            + _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(*field) for field in fields.items()))
            # An empty HealthCheckRequest asks about the whole server.
            + _frame(_DATA, _END_STREAM, 1, b"\0\0\0\0\0")
        )
        with connection.makefile("rb") as stream:
            while len(head := stream.read(9)) == 9:
                content = stream.read(int.from_bytes(head[:3], "big"))
                kind, flags = head[3], head[4]
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    connection.sendall(_frame(kind, _ACK, 0, content if kind == _PING else b""))
                elif kind == _DATA and content:
                    return "" if content == _SERVING else f"port {port}: not serving"
                elif kind in (_RST_STREAM, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
                    return f"port {port}: grpc.health is not answered"
    return f"port {port}: the connection was closed"


def ask_http(port: int) -> str:
    """Asks /readyz on a port of this host; empty, or why it does not serve. Raises OSError."""
    with socket.create_connection(("127.0.0.1", port), _SECONDS) as connection:
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as stream:
            status = stream.readline().decode("latin-1").strip()
    return "" if " 200 " in f"{status} " else f"port {port}: {status or 'the connection was closed'}"


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + content


def _literal(name: str, value: str) -> bytes:
    """A header field of HPACK that is not indexed; both are shorter than 127 bytes."""
    return b"".join((b"\0", bytes([len(name)]), name.encode(), bytes([len(value)]), value.encode()))


if __name__ == "__main__":
    raise SystemExit(main())
