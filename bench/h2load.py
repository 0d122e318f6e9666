"""Loads a server with h2load, which takes far less of the machine than a Python client would."""

from __future__ import annotations

import re
import shutil
import statistics
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MISSING = "h2load is not installed; it comes with nghttp2: apt-get install nghttp2-client"


class LoadError(Exception):
    """The load did not run as it should have; the text says what was seen."""


@dataclass(frozen=True, slots=True)
class Load:
    """How a server is asked: `connections` × `streams` requests are open at any time, each of `images` images."""

    connections: int
    streams: int
    images: int = 1

    @property
    def concurrency(self) -> int:
        """Requests open at any time."""
        return self.connections * self.streams

    @property
    def name(self) -> str:
        """Concurrency, and the images of a request where there are many."""
        return str(self.concurrency) if self.images == 1 else f"{self.concurrency} × {self.images} images"


@dataclass(frozen=True, slots=True)
class Summary:
    """What h2load counted.

    Attributes:
        requests: Answered with HTTP status 200, whatever gRPC's status was.
        requests_per_second: The same over the duration.
        data_bytes: Bytes of DATA frames of all answers. An answer that is only an error has none.
    """

    requests: int
    requests_per_second: float
    data_bytes: int


def require_h2load() -> str:
    """The installed h2load's version, e.g. "nghttp2/1.52.0".

    Raises:
        LoadError: There is none; the text says how to install it.
    """
    if shutil.which("h2load") is None:
        raise LoadError(_MISSING)
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]


def frame(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length as four bytes, itself."""
    return b"\0" + struct.pack(">I", len(message)) + message


def run_h2load(
    port: int, method: str, body: Path, load: Load, seconds: float, log: Path, http1: str | None = None
) -> str:
    """Sends one request again and again.

    Args:
        port: Of 127.0.0.1.
        method: Path of the gRPC method, or another path.
        body: File with the framed request, or what else is sent.
        load: How many at a time.
        seconds: For how long; what is unanswered then is cancelled.
        log: File to write every request's time to, for `read_latencies`.
        http1: The body's type, to ask by HTTP/1.1; None asks by gRPC.

    Returns:
        What h2load prints, for `parse_summary`.

    Raises:
        LoadError: h2load is not there, or failed.
    """
    log.unlink(missing_ok=True)  # h2load appends
    command = [
        "h2load",
        "-t1",
        f"-c{load.connections}",
        f"-m{load.streams}",
        f"-D{round(seconds * 1000)}ms",
        f"-d{body}",
    ]
    command.append(f"--log-file={log}")
    if http1 is None:
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    else:
        command += ["--h1", "-H", f"content-type: {http1}"]
    try:
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{method}"], capture_output=True, text=True, timeout=seconds + 30
        )
    except FileNotFoundError:
        raise LoadError(_MISSING) from None
    except subprocess.TimeoutExpired:
        raise LoadError(f"h2load did not end within {seconds + 30:g} s of a {seconds:g} s run") from None
    if done.returncode:
        raise LoadError(f"h2load ended with code {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def parse_summary(text: str) -> Summary:
    """Reads what h2load prints at the end.

    Raises:
        LoadError: A request failed, none was answered, or the text is not h2load's.
    """
    rate = re.search(r"^finished in \S+, ([\d.]+) req/s", text, re.MULTILINE)
    counts = re.search(
        r"^requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text, re.M
    )
    data = re.search(r"^traffic: .*\((\d+)\) data", text, re.MULTILINE)
    if rate is None or counts is None or data is None:
        raise LoadError(f"h2load printed no summary, but {text[-500:]!r}")
    done, succeeded, *failures = map(int, counts.groups())
    if not done:
        raise LoadError(f"no request was answered before the time was over; give more --seconds (h2load: {counts[0]})")
    if done != succeeded or any(failures):
        raise LoadError(f"not every request was answered: h2load counted {counts[0]!r}")
    return Summary(done, float(rate[1]), int(data[1]))


def read_latencies(log: Path) -> list[float]:
    """Every request's time in milliseconds, ascending, from h2load's log: start in µs, HTTP status, time in µs."""
    with log.open() as lines:
        return sorted(int(line.split("\t")[2]) / 1000 for line in lines)


def percentile(ascending: Sequence[float], percent: int) -> float:
    """The value that `percent` of a hundred do not exceed; the only one of a single value."""
    if len(ascending) == 1:
        return ascending[0]
    return statistics.quantiles(ascending, n=100, method="inclusive")[percent - 1]
