"""The servers that are compared, and what is measured of each."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from answers import METHOD, Questions
from h2load import Load, LoadError, Summary, frame, parse_summary, percentile, read_latencies, run_h2load
from processes import ProcessError, ServerProcess, accepts, free_ports, http_get, serving

OURS = ("completion_queue", "aio")
PLAIN = "plain"
# Few connections with many streams, as callers have that keep one channel each. Concurrency 32 is the last, since what
# comes after feature maps is compared with it.
LOADS = (Load(1, 1), Load(4, 2), Load(8, 16), Load(4, 1, images=32), Load(4, 8))
AT_32 = LOADS[-1]
_WARM_UP_SECONDS = 0.5
_MAP_REQUESTS = 100


def our_server(models: Path, port: int, http_port: int, transport: str) -> list[str]:
    """The command that starts this project's server. What it does not say, the environment may (CONVLENS_…)."""
    command = [sys.executable, "-m", "convlens_server", "--models", str(models), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--http-port", str(http_port), "--transport", transport]
    return [*command, "--device", "cpu", "--log-level", "warning"]


def highest_version(folder: Path) -> Path:
    """The file of a model's highest version. Raises ProcessError where there is none."""
    versions = [path for path in folder.glob("*/model.onnx") if path.parent.name.isdigit()]
    if not versions:
        raise ProcessError(f"{folder} has no <version>/model.onnx; give --models the model repository")
    return max(versions, key=lambda path: int(path.parent.name))


def is_ready(http_port: int) -> bool:
    """Whether this project's server says so."""
    return http_get(http_port, "/readyz")[0] == 200


def measure_ours(models: Path, transport: str, questions: Questions, seconds: float) -> dict[str, Any]:
    """Measures this project's server; with the default transport also what feature maps cost those who ask for none."""
    port, http_port = free_ports(2)
    command = our_server(models, port, http_port, transport)
    with serving(command, lambda: is_ready(http_port)) as server, TemporaryDirectory() as folder:
        contest = Contest(server, port, http_port, questions, Path(folder), seconds)
        result = contest.result()
        if transport == OURS[0]:
            # Right after the same load without any feature maps before it.
            questions.ask_for_maps(port, _MAP_REQUESTS)
            result["after_feature_maps"] = contest.point(AT_32)
        return result


def measure_plain(path: Path, model: str, questions: Questions, seconds: float) -> dict[str, Any]:
    """Measures the server written by hand."""
    (port,) = free_ports(1)
    command = [sys.executable, str(Path(__file__).with_name("plain_server.py"))]
    command += ["--model", model, "--file", str(path), "--port", str(port)]
    with serving(command, lambda: accepts(port)) as server, TemporaryDirectory() as folder:
        return Contest(server, port, None, questions, Path(folder), seconds).result()


class Contest:
    """One server under one load after another."""

    def __init__(
        self,
        server: ServerProcess,
        port: int,
        http_port: int | None,
        questions: Questions,
        folder: Path,
        seconds: float,
    ) -> None:
        self._server = server
        self._port = port
        self._http_port = http_port
        self._folder = folder
        self._seconds = seconds
        self._loaded_mb = server.memory("VmRSS")
        self._answer_sizes = questions.check(port)
        for images in self._answer_sizes:
            self._body(images).write_bytes(frame(questions.classify(0, images).SerializeToString()))

    def result(self) -> dict[str, Any]:
        """Every load's point, and the server's own figures."""
        points = [self.point(load) for load in LOADS]
        return {
            "start_seconds": self._server.start_seconds,
            "loaded_mb": self._loaded_mb,
            "peak_mb": self._server.memory("VmHWM"),
            "points": points,
        }

    def point(self, load: Load) -> dict[str, Any]:
        """One load: images a second, median and 99th percentile of the time, the server's CPU time for a request.

        Raises:
            LoadError: Not every request was answered with what was asked for.
        """
        log = self._folder / "latencies"
        body = self._body(load.images)
        run_h2load(self._port, METHOD, body, load, _WARM_UP_SECONDS, log)
        counted = self._settled()
        cpu = self._server.cpu_seconds()
        printed = run_h2load(self._port, METHOD, body, load, self._seconds, log)
        cpu = self._server.cpu_seconds() - cpu
        summary = parse_summary(printed)
        check_sizes(summary.data_bytes, summary.requests, self._answer_sizes[load.images] + len(frame(b"")), load)
        if counted is not None:
            check_counts(counted, self._settled() or {}, summary.requests, load)
        return figures(load, summary, read_latencies(log), cpu)

    def _body(self, images: int) -> Path:
        return self._folder / f"request_{images}"

    def _settled(self) -> dict[str, float] | None:
        """Classify requests by status code once none is open any more; None where the server does not count."""
        if self._http_port is None:
            return None
        before, counts = None, _classified(self._http_port)
        while counts != before:
            time.sleep(0.1)
            before, counts = counts, _classified(self._http_port)
        return counts


def figures(load: Load, summary: Summary, latencies: Sequence[float], cpu_seconds: float) -> dict[str, Any]:
    """What is told of one load: images a second, median and 99th percentile of the time, CPU time for a request."""
    return {
        "load": load.name,
        "images_per_second": summary.requests_per_second * load.images,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "cpu_us": cpu_seconds / summary.requests * 1e6,
    }


def _classified(http_port: int) -> dict[str, float]:
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(http_get(http_port, "/metrics")[1]):
        for sample in family.samples:
            if sample.name == "convlens_requests_total" and sample.labels["method"] == "Classify":
                code = sample.labels["code"]
                counts[code] = counts.get(code, 0) + sample.value
    return counts


def check_sizes(data_bytes: int, requests: int, answer_bytes: int, load: Load) -> None:
    """Checks that every answer carried a message: a gRPC error has HTTP status 200 too, but no message.

    What was open at the end may have been read in part.

    Raises:
        LoadError: The bytes are not those of as many answers.
    """
    if not 0 <= data_bytes - requests * answer_bytes <= load.concurrency * answer_bytes:
        raise LoadError(
            f"{requests} answers of {answer_bytes} bytes at concurrency {load.name} should be "
            f"{requests * answer_bytes} bytes, but h2load read {data_bytes}: some were errors"
        )


def check_counts(before: dict[str, float], after: dict[str, float], requests: int, load: Load) -> None:
    """Checks the server's own count: every request answered was OK, and the rest was cancelled by h2load at its end.

    Raises:
        LoadError: There were other statuses, or more or less of these than h2load says.
    """
    ended = {code: after[code] - before.get(code, 0) for code in after}
    ok, cancelled = ended.pop("OK", 0), ended.pop("CANCELLED", 0)
    if not requests <= ok <= requests + load.concurrency or cancelled > load.concurrency or any(ended.values()):
        raise LoadError(
            f"h2load counts {requests} answers at concurrency {load.name}, but the server {ok:g} OK, "
            f"{cancelled:g} cancelled, others {ended}"
        )


def load_names() -> Sequence[str]:
    """Names of the loads in the order of a table: by concurrency, many images last."""
    return [load.name for load in sorted(LOADS, key=lambda load: (load.images, load.concurrency))]
