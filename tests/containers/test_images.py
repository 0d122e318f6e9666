"""The server's image: what is in it, what it may do, and how it starts and ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from containers.system import ROOT, Load, container, docker, ended, inspect, is_ready, logs, message, run, wait_for

pytestmark = pytest.mark.timeout(600)


def catches(process: int, number: int) -> bool:
    """Whether a process has a handler of a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def cgroup(name: str) -> str:
    return docker("exec", name, "python3", "-c",
                  "from convlens_server.cgroup import ControlGroups as C, default_threads\n"
                  "print(C().cpus(), C().memory(), default_threads())")  # fmt: skip


class TestContent:
    def test_it_is_small(self, image):
        size = inspect(image)["Size"] - inspect("python:3.13-slim")["Size"]
        assert size < 350 * 10**6

    def test_it_has_no_torch_and_no_compiler(self, image):
        script = (
            "! command -v gcc && ! command -v cc && ! command -v ld && ! command -v pip"
            " && ! python3 -c 'import torch' 2>/dev/null && python3 -c 'import onnxruntime, s3fs, opentelemetry.sdk'"
        )
        docker("run", "--rm", "--entrypoint", "sh", image, "-c", script)

    def test_what_it_says_of_itself(self, image):
        config = inspect(image)["Config"]
        assert config["User"] == "10001:10001"
        assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert config["Labels"]["org.opencontainers.image.version"]
        assert config["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "convlens_server.probe"]

    def test_the_same_sources_give_the_same_wheel(self, image):
        docker("build", "--quiet", "--file", "deploy/Dockerfile", "--target", "build", "--tag", "convlens-test/build",
               ".", cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"})  # fmt: skip
        script = (
            "find . -exec touch -d 2000-01-01 {} + && SOURCE_DATE_EPOCH=1767225600 /opt/build/bin/pip wheel --quiet "
            "--no-deps --no-build-isolation --wheel-dir /again . && cmp /dist/*.whl /again/*.whl"
        )
        docker("run", "--rm", "--network", "none", "convlens-test/build", "sh", "-c", script)


HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp")


class TestLife:
    def test_it_runs_with_nothing_that_it_does_not_need(self, image):
        with container(*HARDENED, "--network", "none") as name:
            wait_for("it is ready", lambda: is_ready(name))
            assert docker("exec", name, "python3", "-m", "convlens_server.probe") == "serving"
            wait_for("the engine says healthy", lambda: inspect(name)["State"]["Health"]["Status"] == "healthy")
            assert docker("exec", name, "id", "-u") == "10001"
            assert "Read-only" in run("docker", "exec", name, "touch", "/models/x", check=False).stderr

    def test_the_probe_tells_a_server_that_does_not_serve(self, image):
        with container("--env", "CONVLENS_DRAIN_DELAY=60") as name:
            wait_for("it is ready", lambda: is_ready(name))
            docker("kill", "--signal", "TERM", name)
            wait_for("it is told", lambda: any("not serving, says health" in line for line in logs(name)))
            probe = run("docker", "exec", name, "python3", "-m", "convlens_server.probe", check=False)
            assert (probe.returncode, probe.stdout) == (1, "port 8001: not serving\n")
            # A second signal ends it at once, though it is the first process.
            docker("kill", "--signal", "TERM", name)
            assert ended(name)["ExitCode"] == 128 + signal.SIGTERM

    @pytest.mark.parametrize("number", ["TERM", "INT"])
    def test_a_signal_drains_and_ends_it(self, image, number):
        with container() as name:
            wait_for("it is ready", lambda: is_ready(name))
            docker("kill", "--signal", number, name)
            assert ended(name)["ExitCode"] == 0
            assert message(logs(name)[-1]) == "drained: every open request was answered"

    def test_a_signal_before_it_is_ready_ends_it(self, image):
        with container("--cpus", "0.2") as name:
            wait_for("it has a handler", lambda: catches(inspect(name)["State"]["Pid"], signal.SIGTERM))
            docker("stop", "--time", "60", name)
            assert ended(name)["ExitCode"] == 0

    @pytest.mark.parametrize(("cpus", "threads"), [("1", "1"), ("0.5", "1"), ("1.5", "1")])
    def test_threads_are_those_of_the_control_group(self, image, cpus, threads):
        with container("--cpus", cpus, "--memory", "400m") as name:
            wait_for("it is ready", lambda: is_ready(name))
            [line] = [line for line in logs(name) if "configuration:" in line]
            assert f"--threads {threads} " in line
            assert cgroup(name) == f"{float(cpus)} {400 * 2**20} {threads}"


class TestMemory:
    """The server with the shipped models; at rest it takes about 135 MiB."""

    def test_with_half_of_what_it_needs_it_refuses(self, image):
        for limit in (40, 68):
            with container("--memory", f"{limit}m", "--memory-swap", f"{limit}m") as name:
                state = ended(name)
                assert (state["ExitCode"], state["OOMKilled"]) == (1, False)
                [line] = logs(name)
                assert line == (
                    f"convlens serve: the memory limit is {limit} MiB, but a server takes at least 80 MiB: raise the "
                    "limit of the container or its control group"
                )

    def test_where_its_models_do_not_fit_it_refuses(self, image):
        for limit in (84, 100, 124):
            with container("--memory", f"{limit}m", "--memory-swap", f"{limit}m") as name:
                state = ended(name)
                assert (state["ExitCode"], state["OOMKilled"]) == (1, False)
                assert message(logs(name)[-1]).startswith("cannot start: the models in /models (3) take about ")

    def test_where_they_fit_it_serves(self, image, expected):
        with container("--memory", "192m", "--memory-swap", "192m", "--publish", "127.0.0.1::8001") as name:
            wait_for("it is ready", lambda: is_ready(name))
            address = docker("port", name, "8001/tcp").replace("127.0.0.1", "localhost")
            with Load(address, expected) as load:
                load.wait(1000)
                assert docker("exec", name, "python3", "-m", "convlens_server.probe") == "serving"
            assert load.failures == []
            assert inspect(name)["State"]["Running"]
