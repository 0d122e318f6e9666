"""The HTTP side of the server: metrics and health, on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route


def make_app(registry: CollectorRegistry, is_ready: Callable[[], bool], routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The ASGI application.

    `/metrics` in Prometheus' text format; `/healthz` 200 as long as the process answers; `/readyz` 200 while requests
    are taken, else 503; and the given routes.
    """

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:
        ready = is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    own = (Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz))
    return Starlette(routes=[*own, *routes])


class HttpServer:
    """Serves an ASGI application on the running event loop.

    Args:
        app: The application.
        host: Address to listen on.
        port: 0 lets the system choose.

    Attributes:
        port: The one that was bound.

    Raises:
        OSError: The address is in use or not of this machine.
    """

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        self._server = _Server(config)
        self._task = asyncio.ensure_future(self._server.serve([self._socket]))

    async def stop(self) -> None:
        """Answers what is open, for 2 s at most, and frees the port."""
        self._server.should_exit = True
        await self._task
        self._socket.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the application: uvicorn raises SIGTERM again when it ends, and gRPC would not drain."""
        yield


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"cannot listen on {host}: {error.strerror}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener
