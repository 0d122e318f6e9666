"""`convlens serve`: runs a server until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from convlens_server.app import running
from convlens_server.config import Config, parse_config
from convlens_server.device import DeviceError
from convlens_server.logs import set_up_logs
from convlens_server.repository import RepositoryError
from convlens_server.tracing import TracingError
from convlens_server.transport.choose import TransportUnavailableError

log = logging.getLogger(__name__)

# The engine's thread gives up the interpreter this often while the transport's thread wants it; Python's own 5 ms
# would let calls wait for longer than a batch takes.
_SWITCH_SECONDS = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, drains, and returns the exit code: 0, or 1 if it could not start.

    A second signal ends the process at once.
    """
    config = parse_config(sys.argv[1:] if argv is None else argv)
    set_up_logs(config.log_format, config.log_level)
    sys.setswitchinterval(_SWITCH_SECONDS)
    log.info("configuration: %s", config)
    try:
        asyncio.run(_serve(config))
    except asyncio.CancelledError:
        log.info("stopped before it was ready")
    except (DeviceError, RepositoryError, TracingError, TransportUnavailableError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    return 0


async def _serve(config: Config) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    stop = asyncio.Event()
    ready = False

    def stopped(number: signal.Signals) -> None:
        log.info("%s", number.name)
        for each in (signal.SIGTERM, signal.SIGINT):
            # Not the default: the first process of a container would ignore the signal.
            loop.add_signal_handler(each, os._exit, 128 + each)
        stop.set()
        if not ready:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped, number)
    async with running(config):
        ready = True
        await stop.wait()
