"""The other servers: how each is set up, and the settings that are tried.

Each is set up for throughput on a CPU as its documentation says, with its dynamic batching on, and asked in the fastest
way that it has. What its documentation leaves open is tried; the best at concurrency 32 is measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wires import Wire, bytes_over_http, bytes_value, json_over_http, model_infer, torchserve_predictions

_HERE = Path(__file__).parent
_FOLDER = _HERE / "others"
_ENVIRONMENTS = _HERE.parent / ".venv-others"
# Metrics, management and the like: each server listens where nobody else does.
PORTS = 5


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to set up one of the other servers.

    Attributes:
        server: What it is called in the table.
        folder: Its folder below bench/others, and its environment's below .venv-others.
        text: Its settings, for the table.
        wire: How it is asked.
        told: What its script reads from the environment; others/network.py says what each means.
        port: Which of its ports is asked, the first being 0.
    """

    server: str
    folder: str
    text: str
    wire: Wire
    told: dict[str, str] = field(default_factory=dict)
    port: int = 0

    @property
    def python(self) -> Path:
        """The interpreter of its own environment."""
        return _ENVIRONMENTS / self.folder / "bin" / "python"

    @property
    def package(self) -> str:
        """The package that has it, with its version: what its requirements name first."""
        return (_FOLDER / self.folder / "requirements.txt").read_text().split()[0].replace("==", " ")

    def arguments(self) -> list[str]:
        """The command that starts it."""
        return [str(self.python), str(_FOLDER / self.folder / "server.py")]

    def variables(self, network: Path, folder: Path, ports: list[int]) -> dict[str, str]:
        """The environment to start it in.

        Args:
            network: The ONNX file.
            folder: Where it may write.
            ports: As many as `PORTS`.
        """
        places = {f"BENCH_PORT_{n + 1}": str(port) for n, port in enumerate(ports)}
        places |= {"BENCH_NETWORK": str(network), "BENCH_FOLDER": str(folder)}
        # Several keep files in their user's home or the temporary folder, and would find there what a run before left.
        places |= {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": f"{_FOLDER / self.folder}:{_FOLDER}"}
        return {**os.environ, **places, **self.told}


def settings(cores: int) -> list[Setting]:
    """All that are tried, a server's own one after another.

    Args:
        cores: That each may use: workers × threads are as many, as convlens's threads are.
    """
    return [*_litserve(cores), *_mlserver(cores), *_bentoml(cores), *_ray(cores), *_triton(cores), *_torchserve(cores)]


def _shares(cores: int) -> Iterator[tuple[str, dict[str, str]]]:
    """The two ways to use all cores: one worker that has all, or one for each. With one core they are the same."""
    for workers, threads in dict.fromkeys(((1, cores), (cores, 1))):
        told = {"BENCH_WORKERS": str(workers), "BENCH_THREADS": str(threads)}
        yield f"{_count(workers, 'worker')} × {_count(threads, 'thread')}", told


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _batches(requests: int, wait_ms: int) -> tuple[str, dict[str, str]]:
    text = f"batches of ≤ {requests}, waiting ≤ {wait_ms} ms" if requests > 1 else "no batches"
    return text, {"BENCH_BATCH": str(requests), "BENCH_WAIT_MS": str(wait_ms)}


def _alone(cores: int) -> tuple[str, dict[str, str]]:
    """Without batches, which for a network as small as this may cost more than they bring: a worker for each core."""
    text, told = _batches(1, 0)
    *_, (share, workers) = _shares(cores)
    return f"{share}, {text}", {**told, **workers}


def _litserve(cores: int) -> Iterator[Setting]:
    # Its documentation: as many workers as cores on a CPU; fast_queue for hundreds of requests a second; as many front
    # ends as workers.
    def setting(text: str, told: dict[str, str], front_ends: str, queue: str = "fast_queue") -> Setting:
        more = {**told, "BENCH_FRONT_ENDS": front_ends, "BENCH_FAST_QUEUE": queue}
        text = ", ".join(filter(None, (text, _count(int(front_ends), "front end"), queue)))
        return Setting("LitServe", "litserve", text, bytes_over_http("/predict"), more)

    limits, told = _batches(32, 0)
    for share, workers in _shares(cores):
        for front_ends in dict.fromkeys(("1", workers["BENCH_WORKERS"])):
            yield setting(f"{share}, {limits}", {**told, **workers}, front_ends)
    share, workers = next(_shares(cores))
    yield setting(f"{share}, {limits}", {**told, **workers}, "1", "")
    yield setting(*_alone(cores), str(cores))


def _mlserver(cores: int) -> Iterator[Setting]:
    # Where nothing may wait, 0 ms, it makes no batches at all. Tensors become lists of Python's integers in it, which
    # elements of type BYTES do not.
    limits, told = _batches(32, 1)
    everything, bytes_form = {"BENCH_THREADS": str(cores)}, model_infer("network", "images", "BYTES")
    inside, outside = f"in the server's process × {_count(cores, 'thread')}", f"1 worker × {_count(cores, 'thread')}"
    for wire in (model_infer("network", "images"), bytes_form):
        more = {**told, **everything, "BENCH_WORKERS": "0"}
        yield Setting("MLServer", "mlserver", f"{inside}, {limits}", wire, more)
    more = {**told, **everything, "BENCH_WORKERS": "1"}
    yield Setting("MLServer", "mlserver", f"{outside}, {limits}", bytes_form, more)
    text, told = _alone(cores)
    yield Setting("MLServer", "mlserver", text, bytes_form, told)


def _bentoml(cores: int) -> Iterator[Setting]:
    # How long a batch waits its batcher learns by itself; the limit is what it may take in all, else it refuses.
    raw, as_json = bytes_over_http("/raw"), json_over_http("/json", "images")
    *_, (each, one_each) = _shares(cores)
    (share, all_in_one), told = next(_shares(cores)), {"BENCH_BATCH": "32", "BENCH_MAX_LATENCY_MS": "1000"}
    limits = "batches of ≤ 32, latency ≤ 1 s"
    yield Setting("BentoML", "bentoml", f"{share}, {limits}", raw, {**told, **all_in_one})
    yield Setting("BentoML", "bentoml", f"{share}, {limits}", as_json, {**told, **all_in_one})
    if cores > 1:
        yield Setting("BentoML", "bentoml", f"{each}, {limits}", raw, {**told, **one_each})
    text, told = _alone(cores)
    yield Setting("BentoML", "bentoml", text, raw, {**told, "BENCH_MAX_LATENCY_MS": "1000"})


def _ray(cores: int) -> Iterator[Setting]:
    # Its performance guide: the throughput-optimized mode, and HAProxy, which comes with it, instead of its own proxy.
    limits, told = _batches(32, 0)
    told |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    share, workers = next(_shares(cores))
    grpc, http = (bytes_value("/bench.Ray/Classify"), 1), (bytes_over_http("/"), 0)
    for (wire, port), proxy in ((grpc, "1"), (http, "1"), (grpc, "0")):
        text = f"{share}, {'HAProxy' if proxy == '1' else 'its own proxy'}, {limits}"
        more = {**told, **workers, "RAY_SERVE_ENABLE_HA_PROXY": proxy}
        yield Setting("Ray Serve", "ray", text, wire, more, port)
    for share, workers in [*_shares(cores)][1:]:
        for wire, port in (grpc, http):
            more = {**told, **workers, "RAY_SERVE_ENABLE_HA_PROXY": "1"}
            yield Setting("Ray Serve", "ray", f"{share}, HAProxy, {limits}", wire, more, port)


def _triton(cores: int) -> Iterator[Setting]:
    wire = model_infer("network", "images")
    for share, workers in _shares(cores):
        for wait_ms in (0, 1):
            limits, told = _batches(32, wait_ms)
            yield Setting("Triton, Python backend", "triton", f"{share}, {limits}", wire, {**told, **workers})


def _torchserve(cores: int) -> Iterator[Setting]:
    # By HTTP/1.1 it answers "200" without "OK", which h2load takes for a failure.
    wire = torchserve_predictions("network")
    for share, workers in _shares(cores):
        for wait_ms in (1, 5):
            limits, told = _batches(32, wait_ms)
            yield Setting("TorchServe", "torchserve", f"{share}, {limits}", wire, {**told, **workers}, port=3)
