"""Which transport is taken: the completion queue where it works, aio where the private layer is not as expected."""

from __future__ import annotations

import logging
import sys
from typing import Any

import grpc._cython.cygrpc as cygrpc
import pytest

from convlens_server.transport.aio import AioTransport
from convlens_server.transport.base import TransportOptions
from convlens_server.transport.choose import TransportUnavailableError, make_transport
from convlens_server.transport.completion_queue import CompletionQueueTransport

OPTIONS = TransportOptions("127.0.0.1:0", ())


@pytest.fixture(params=["module", "class", "operation", "event"])
def changed_layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grpcio whose private layer lacks something, or has something other than expected."""
    if request.param == "module":
        monkeypatch.setitem(sys.modules, "convlens_server.transport.completion_queue", None)
    elif request.param == "class":
        monkeypatch.delattr(cygrpc, "CompletionQueue")
    elif request.param == "operation":

        def changed(message: bytes) -> Any:
            raise TypeError("takes 1 argument")

        monkeypatch.setattr(cygrpc, "SendMessageOperation", changed)
    else:
        monkeypatch.delattr(cygrpc, "ReceiveCloseOnServerOperation")


@pytest.mark.parametrize("name", ["auto", "completion_queue"])
async def test_completion_queue_where_it_works(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert type(await make_transport(name, OPTIONS)) is CompletionQueueTransport
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_aio_by_name() -> None:
    assert type(await make_transport("aio", OPTIONS)) is AioTransport


@pytest.mark.usefixtures("changed_layer")
async def test_aio_where_the_layer_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    transport = await make_transport("auto", OPTIONS)
    assert type(transport) is AioTransport
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "using the aio transport" in warning.getMessage()
    assert await transport.start() > 0
    await transport.stop()


@pytest.mark.usefixtures("changed_layer")
async def test_completion_queue_by_name_where_it_does_not_work() -> None:
    with pytest.raises(TransportUnavailableError, match="use --transport aio"):
        await make_transport("completion_queue", OPTIONS)
