"""Child processes of the benchmark: servers, and measurements that nothing else may disturb."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from process_tree import end, tree

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


class ProcessError(Exception):
    """A child did not do what it was started for; the text holds the end of what it printed."""


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that is ready.

    Attributes:
        pid: Of its only process.
        start_seconds: From the start of the process until it was ready.
    """

    pid: int
    start_seconds: float

    def cpu_seconds(self) -> float:
        """User and system time that it has taken."""
        # The second field, the command's name in brackets, may hold blanks.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self, field: str) -> float:
        """Resident memory in MB (10^6 bytes): "VmRSS" of now, "VmHWM" the most there was."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024 / 1e6
        raise ProcessError(f"process {self.pid} has no {field}")


@contextlib.contextmanager
def serving(
    command: Sequence[str], is_ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Starts a server; it is ready inside the block, and ended at its end, with all processes that it has started.

    Args:
        command: What to start.
        is_ready: Asks whether it answers; called every 10 ms until then.
        environment: Of the server; None for this process's own.

    Raises:
        ProcessError: It ended, or was not ready within 60 s.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while not is_ready():
                if child.poll() is not None or time.monotonic() - started > _START_TIMEOUT:
                    output.seek(0)
                    state = f"ended with code {child.returncode}" if child.returncode is not None else "is not ready"
                    raise ProcessError(f"{' '.join(command)} {state}: {output.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.01)
            yield ServerProcess(child.pid, time.monotonic() - started)
        finally:
            family = tree(child.pid)
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            end(family)


def run_child(script: str, *arguments: object) -> Any:
    """Runs a script of this folder and gives the JSON document that it prints.

    Raises:
        ProcessError: It failed.
    """
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise ProcessError(f"{script} ended with code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def accepts(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and text of an answer; 0 and nothing where nobody answers.

    Not by urllib, which would ask the proxy that the environment names.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
