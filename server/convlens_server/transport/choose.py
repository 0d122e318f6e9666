"""Chooses the transport, and proves the private one before it is trusted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc

from convlens_server.transport.aio import AioTransport
from convlens_server.transport.base import Call, Method, Transport, TransportOptions

log = logging.getLogger(__name__)

TRANSPORTS = ("auto", "completion_queue", "aio")


class TransportUnavailableError(Exception):
    """The transport that was asked for does not work with the grpcio that is installed."""


async def make_transport(name: str, options: TransportOptions) -> Transport:
    """Makes the transport that is asked for; "auto" is the completion queue where it works, else aio.

    Raises:
        TransportUnavailableError: "completion_queue" was asked for by name and does not work here.
    """
    if name == "aio":
        return AioTransport(options)
    try:
        await _prove()
    except Exception as error:
        reason = f"the completion queue of grpcio {grpc.__version__} is not as expected ({error!r})"
        if name == "completion_queue":
            raise TransportUnavailableError(f"{reason}: use --transport aio, or another grpcio") from None
        log.warning("%s: using the aio transport, which costs 3 to 10 times the CPU a call", reason)
        return AioTransport(options)
    from convlens_server.transport.completion_queue import CompletionQueueTransport

    return CompletionQueueTransport(options)


async def _prove() -> None:
    """Makes one echo call through the private layer, on a port of its own; 10 ms, 3 s at most."""
    from convlens_server.transport.completion_queue import CompletionQueueTransport

    def echo(request: bytes, call: Call) -> None:
        call.reply(request)

    transport = CompletionQueueTransport(TransportOptions("127.0.0.1:0", (Method("/convlens.Proof/Echo", echo),)))
    port = await transport.start()
    try:
        proof = b"proof"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            call: Any = channel.unary_unary("/convlens.Proof/Echo")
            answer = await asyncio.wait_for(call(proof, timeout=3.0), 3.0)
        if answer != proof:
            raise RuntimeError(f"echo answered {answer!r}")
    finally:
        # Draining first: cancelling at once makes core print the GOAWAY of a closing channel.
        await transport.drain(0.2)
        await transport.stop()
