"""The system in containers, as docker-compose.yml brings it up, and a load that checks every answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import convlens
from support import free_port

ROOT = Path(__file__).parents[2]
COMPOSE = os.environ.get("DOCKER_COMPOSE", "docker-compose")
SERVER = "convlens/server-cpu:0.1.0"
# Seconds within which what is waited for happens on a busy machine, too.
PATIENCE = 120.0


def run(*command: str, check: bool = True, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command, its output as text; a failure shows what it printed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check:
        assert ended.returncode == 0, f"{' '.join(command)}: {ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    return ended


def docker(*arguments: str, **options: Any) -> str:
    return run("docker", *arguments, **options).stdout.strip()


def wait_for(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true value of a condition."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return value


def inspect(name: str) -> dict[str, Any]:
    [state] = json.loads(docker("inspect", name))
    return state  # type: ignore[no-any-return]


def moment(text: str) -> float:
    """Seconds since 1970 of one of Docker's times, which have nanoseconds."""
    return datetime.fromisoformat(re.sub(r"\.(\d{6})\d*Z", r".\1+00:00", text)).timestamp()


class System:
    """A project of Compose, with ports of its own."""

    def __init__(self, project: str, *files: Path, **variables: str) -> None:
        self.project = project
        self.port, self.prometheus_port = free_port(), free_port()
        self._files = files or (ROOT / "docker-compose.yml",)
        self.environment = {
            **os.environ, "PORT": str(self.port), "PROMETHEUS_PORT": str(self.prometheus_port), "POLL_SECONDS": "1",
            **variables,
        }  # fmt: skip

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        files = [part for file in self._files for part in ("--file", str(file))]
        return run(
            COMPOSE, "--project-name", self.project, "--project-directory", str(ROOT), *files, "--progress", "quiet",
            *arguments, env=self.environment, **options,
        )  # fmt: skip

    def up(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Without Grafana, for which there is no package anywhere."""
        return self.compose("up", "--wait", *arguments, "server", "envoy", "prometheus", timeout=600, **options)

    def scale(self, replicas: int) -> None:
        self.up("--no-recreate", "--scale", f"server={replicas}")
        wait_for(f"Envoy has {replicas} servers", lambda: self.healthy() == replicas)

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "2", "--remove-orphans")

    def servers(self) -> list[str]:
        return sorted(self.compose("ps", "--quiet", "server").stdout.split())

    def container(self, service: str) -> str:
        return f"{self.project}-{service}-1"

    def envoy(self, name: str) -> float:
        """The sum of one of Envoy's figures over the clusters of servers."""
        program = "import urllib.request as u; print(u.urlopen('http://envoy:9902/stats/prometheus').read().decode())"
        page = docker("exec", self.servers()[0], "python3", "-c", program)
        return figure(page, name, envoy_cluster_name="grpc")

    def healthy(self) -> int:
        return int(self.envoy("envoy_cluster_membership_healthy"))

    def metric(self, server: str, name: str, **labels: str) -> float:
        program = "import urllib.request as u; print(u.urlopen('http://localhost:8000/metrics').read().decode())"
        return figure(docker("exec", server, "python3", "-c", program), name, **labels)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an expression."""
        return self.prometheus("query", query=expression)["result"]  # type: ignore[no-any-return]

    def prometheus(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        url = f"http://localhost:{self.prometheus_port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["data"]


def figure(page: str, name: str, **labels: str) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items())
    )


class Expected:
    """Images, and the logits that each version of a model must give for each."""

    def __init__(self, versions: Mapping[int, bytes]) -> None:
        # Few bright dots, so that no two images have like scores.
        random = np.random.default_rng(6)
        lit = random.random((64, 28, 28, 1)) < 0.15
        self.images = random.integers(0, 256, lit.shape, np.uint8) * lit
        self.scores: dict[int, np.ndarray] = {}
        for number, content in versions.items():
            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            [self.scores[number]] = session.run(["scores"], {"image": self.images})


class Load:
    """Callers with the SDK as it is, retries included, who check every answer.

    Attributes:
        answers: By the version that answered.
        failures: What was raised, or was wrong.
    """

    def __init__(self, address: str, expected: Expected, callers: int = 6, **options: Any) -> None:
        self._address = address
        self._expected = expected
        self._options = options
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(callers)]
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self.versions: list[list[int]] = [[] for _ in self._threads]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait(200)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def total(self) -> int:
        with self._lock:
            return self.answers.total() + len(self.failures)

    def wait(self, more: int) -> None:
        """Until so many more requests have ended."""
        goal = self.total + more
        wait_for(f"{more} more requests have ended", lambda: self.total >= goal)

    def _work(self, number: int) -> None:
        images = self._expected.images
        with convlens.Client(self._address, **self._options) as client:
            turn = number
            while not self._stop.is_set():
                turn = (turn + 7) % len(images)
                problem, version = "", 0
                try:
                    answer = client.classify(images[turn], model="lecture_cnn", scores=True)
                    version = answer.version
                    if not np.allclose(answer.scores, self._expected.scores[version][turn], atol=1e-4):
                        problem = f"image {turn}: wrong scores from version {version}"
                except Exception as error:
                    problem = f"{type(error).__name__}: {error}"
                with self._lock:
                    if problem:
                        self.failures.append(problem)
                    else:
                        self.answers[version] += 1
                        self.versions[number].append(version)
                # Not as much as they can: what is tested is not their speed, and the machine may be small.
                self._stop.wait(0.005)


@contextlib.contextmanager
def container(*arguments: str, image: str = SERVER, command: Sequence[str] = ()) -> Iterator[str]:
    """A container that runs in the background, removed at the end."""
    name = docker("run", "--detach", *arguments, image, *command)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def logs(name: str) -> list[str]:
    ended = run("docker", "logs", name)
    return (ended.stdout + ended.stderr).splitlines()


def message(line: str) -> str:
    """Of a line of a server's log, in JSON or not."""
    try:
        return str(json.loads(line)["message"])
    except ValueError:
        return line


def is_ready(name: str) -> bool:
    return any('"ready: ' in line for line in logs(name))


def ended(name: str) -> dict[str, Any]:
    """The state of a container that has come to its end."""
    docker("wait", name, timeout=120)
    return inspect(name)["State"]  # type: ignore[no-any-return]
