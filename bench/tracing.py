"""Measures what tracing costs: servers that trace nothing, some requests and all, under the same load at the same time.

python bench/tracing.py                  # measures, writes bench/results/tracing.json, prints the table
python bench/tracing.py --table FILE     # prints the table of a stored result
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from answers import Questions
from command import finish, new_parser, say, say_if_busy
from contenders import AT_32, OURS, Contest, highest_version, is_ready, our_server
from h2load import require_h2load
from machine import machine
from processes import ProcessError, free_ports, run_child, serving
from tables import goal, goal_table, spread, table

_HERE = Path(__file__).parent
# The servers, and the share of their requests that they trace; None: tracing is off. The second differs from the first
# in nothing: what lies between them is chance.
_OFF, _CONTROL, _SOME, _ALL = "off", "off, again", "1 %", "all"
_SHARES = {_OFF: None, _CONTROL: None, _SOME: 0.01, _ALL: 1.0}
_MODEL = "lecture_cnn"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as an OpenTelemetry collector does, and counts them."""

    def __init__(self) -> None:
        self.spans = 0

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        """Counts what is in a request."""
        self.spans += sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
        return pb.ExportTraceServiceResponse()


@contextlib.contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector in this process, and its endpoint."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def measure(models: Path, seconds: float, repeats: int) -> dict[str, Any]:
    """Has all servers run at the same time, so that what slows the machine down slows all of them, `repeats` times.

    Args:
        models: The model repository.
        seconds: Of the load each time.
        repeats: Of it.

    Raises:
        LoadError: A request failed, or h2load is not there.
        AnswerError: A server answered wrongly.
        ProcessError: A server failed, or no spans arrived.
    """
    h2load = require_h2load()
    path = highest_version(models / _MODEL)
    described = run_child("in_process.py", "describe", path)
    questions = Questions(_MODEL, described["shape"], described["scores"])
    result: dict[str, Any] = {
        "settings": {"seconds": seconds, "repeats": repeats, "load": AT_32.name},
        "machine": {**machine("grpcio", "opentelemetry-sdk"), "h2load": h2load},
        "repeats": [],
    }
    say_if_busy(result["machine"])
    with collecting() as (collector, endpoint):
        for n in range(repeats):
            say(f"repeat {n + 1} of {repeats}")
            result["repeats"].append(_race(models, questions, endpoint, seconds, n))
    result["spans"] = collector.spans
    if not collector.spans:
        raise ProcessError("no span arrived at the collector: the servers traced nothing")
    result["goals"] = goals(result)
    return result


def _race(models: Path, questions: Questions, endpoint: str, seconds: float, first: int) -> dict[str, Any]:
    """Starts all servers, anew since two processes of one program differ too, in turn, and loads them together."""
    names = list(_SHARES)
    names = names[first % len(names) :] + names[: first % len(names)]
    with contextlib.ExitStack() as stack:
        contests = {}
        for name in names:
            port, http_port = free_ports(2)
            command = our_server(models, port, http_port, OURS[0])
            if (share := _SHARES[name]) is not None:
                command += ["--trace-endpoint", endpoint, "--trace-share", str(share)]
            server = stack.enter_context(serving(command, lambda http_port=http_port: is_ready(http_port)))  # type: ignore[misc]
            folder = Path(stack.enter_context(TemporaryDirectory()))
            contests[name] = Contest(server, port, http_port, questions, folder, seconds)
        pool = stack.enter_context(ThreadPoolExecutor(len(contests)))
        running = {name: pool.submit(contest.point, AT_32) for name, contest in contests.items()}
        return {name: future.result() for name, future in running.items()}


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal: what, the limit in words, median, low and high of the repeats, and whether the median reaches it."""

    def ratios(name: str) -> list[float]:
        return [turn[name]["cpu_us"] / turn[_OFF]["cpu_us"] for turn in result["repeats"]]

    return [goal("server CPU a request, 1 % traced ÷ tracing off", ratios(_SOME), high=1.02)]


def hundredth(result: dict[str, Any]) -> str:
    """A hundredth of what tracing all requests adds, in percent: what 1 % should cost, with little of chance in it."""
    return spread([turn[_ALL]["cpu_us"] / turn[_OFF]["cpu_us"] - 1 for turn in result["repeats"]])


def control(result: dict[str, Any]) -> str:
    """The same ratio of two servers that trace nothing: how far chance goes."""
    return spread([turn[_CONTROL]["cpu_us"] / turn[_OFF]["cpu_us"] for turn in result["repeats"]])


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    where, settings = result["machine"], result["settings"]
    rows = []
    for name in _SHARES:
        points = [turn[name] for turn in result["repeats"]]
        columns = ("images_per_second", "p50_ms", "p99_ms", "cpu_us")
        rows.append((name, *(spread([point[column] for point in points]) for column in columns)))
    return "\n\n".join((
        f"Machine: {where['cpu']}, {where['cores']} cores shared with the load generator, {where['memory_gib']} GiB; "
        f"{where['kernel']}, Python {where['python']}, grpcio {where['grpcio']}, opentelemetry-sdk "
        f"{where['opentelemetry-sdk']}, h2load {where['h2load']}; load average before: {where['load_before']:.2f}.",
        f"Command: `python bench/tracing.py --seconds {settings['seconds']:g} --repeats {settings['repeats']}`, at "
        f"concurrency {settings['load']}. Figures are medians of {settings['repeats']} (lowest – highest).",
        goal_table(result["goals"]),
        f"Of two servers that trace nothing the same ratio is {control(result)}. A hundredth of what tracing all adds "
        f"is {hundredth(result)} %.",
        table(("traced", "images/s", "p50 ms", "p99 ms", "server CPU µs a request"), rows),
    ))  # fmt: skip


def main() -> int:
    """Measures or shows; returns the exit code."""
    parser = new_parser("tracing", __doc__)
    parser.add_argument("--models", type=Path, default=_HERE.parent / "models", help="the repository (models)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the load each time (%(default)g)")
    parser.add_argument("--repeats", type=int, default=15, help="of it (%(default)d)")
    arguments = parser.parse_args()
    if arguments.seconds < 1 or arguments.repeats < 1:
        parser.error("--seconds and --repeats must be at least 1")
    return finish("tracing", arguments, lambda: measure(arguments.models, arguments.seconds, arguments.repeats), render)


if __name__ == "__main__":
    sys.exit(main())
