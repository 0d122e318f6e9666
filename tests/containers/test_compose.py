"""docker-compose.yml: Envoy, the replicas and Prometheus together, with callers who check every answer."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import convlens
from containers.system import (
    PATIENCE,
    ROOT,
    SERVER,
    Expected,
    Load,
    System,
    docker,
    inspect,
    logs,
    moment,
    wait_for,
)
from convlens.v1 import convlens_pb2 as pb

pytestmark = pytest.mark.timeout(900)

MODEL = ROOT / "models" / "lecture_cnn" / "1" / "model.onnx"


def retries(system: System) -> float:
    return system.envoy("envoy_cluster_upstream_rq_retry")


def test_everything_is_healthy_and_answers(system: System) -> None:
    states = {line["Service"]: line["Health"] for line in map(json.loads, system.compose(
        "ps", "--format", "json").stdout.splitlines())}  # fmt: skip
    assert states == {"server": "healthy", "envoy": "healthy", "prometheus": "healthy"}
    with convlens.Client(system.address) as client:
        assert client.classify(ROOT / "docs" / "images" / "two.png", model="lecture_cnn").label == "2"
        [layer] = client.maps(np.zeros((28, 28), np.uint8), model="lecture_cnn", layers=["conv_1"])
        assert layer.activation.shape == (32, 26, 26)


class TestWays:
    """What Envoy lets through beside gRPC."""

    def post(self, system: System, path: str, content: bytes, kind: str) -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://{system.address}{path}", content, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()

    def test_json(self, system: System) -> None:
        file = base64.b64encode((ROOT / "docs" / "images" / "two.png").read_bytes()).decode()
        question = {"model": "lecture_cnn", "images": {"encoded": {"files": [file]}}}
        status, answer = self.post(
            system, "/convlens.v1.ConvLens/Classify", json.dumps(question).encode(), "application/json"
        )
        assert status == 200
        assert json.loads(answer)["results"][0]["predictions"][0]["label"] == "2"

    def test_grpc_web(self, system: System) -> None:
        question = pb.ListModelsRequest().SerializeToString()
        framed = b"\0" + len(question).to_bytes(4, "big") + question
        status, answer = self.post(system, "/convlens.v1.ConvLens/ListModels", framed, "application/grpc-web+proto")
        assert status == 200
        length = int.from_bytes(answer[1:5], "big")
        models = pb.ListModelsResponse.FromString(answer[5 : 5 + length])
        assert {model.model for model in models.models} == {"lecture_cnn", "tiny_vgg", "tiny_vgg_bn"}
        assert b"grpc-status:0" in answer[5 + length :].replace(b" ", b"")

    def test_open_inference(self, system: System) -> None:
        with urllib.request.urlopen(f"http://{system.address}/v2/models/lecture_cnn", timeout=30) as response:
            assert json.load(response)["versions"] == ["1"]

    def test_explorer(self, system: System) -> None:
        with urllib.request.urlopen(f"http://{system.address}/", timeout=30) as response:
            assert response.headers.get_content_type() == "text/html"

    def test_metrics_are_not_for_callers(self, system: System) -> None:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{system.address}/metrics", timeout=30)
        assert caught.value.code == 404
        caught.value.close()


def test_prometheus_sees_every_replica_and_every_panel_has_data(system: System, expected: Expected) -> None:
    system.scale(3)
    with Load(system.address, expected), convlens.Client(system.address) as client:
        wait_for("Prometheus has 3 servers", lambda: len(system.query('up{job="convlens"} == 1')) == 3)
        assert {target["health"] for target in system.prometheus("targets")["activeTargets"]} == {"up"}

        def ask() -> None:
            client.maps(np.zeros((28, 28), np.uint8), model="lecture_cnn", layers=["conv_1"])
            with pytest.raises(convlens.NotFound):
                client.classify(np.zeros((28, 28), np.uint8), model="none")

        for name in ("convlens", "envoy"):
            for title, expression in expressions(name):

                def has_data(expression: str = expression) -> bool:
                    ask()
                    return bool(system.query(expression))

                wait_for(f"{name}: {title}: {expression}", has_data)
        # No GPU here: they can be evaluated, and there is nothing to see.
        for _, expression in expressions("gpu"):
            system.query(expression)
    rules = [rule for group in system.prometheus("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def expressions(dashboard: str) -> list[tuple[str, str]]:
    """Title and expression of each query of a dashboard, with its variables as Grafana fills them in."""
    content = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / f"{dashboard}.json").read_text())
    found = []
    for panel in content["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in {"$__rate_interval": "20s", "$model": ".*", "$instance": ".*"}.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression
            found.append((panel["title"], expression))
    assert found
    return found


def test_requests_are_split_evenly(system: System, expected: Expected) -> None:
    system.scale(3)
    labels = {"method": "Classify", "model": "lecture_cnn"}
    before = {server: system.metric(server, "convlens_requests_total", **labels) for server in system.servers()}
    with Load(system.address, expected) as load:
        load.wait(1500)
    shares = [system.metric(server, "convlens_requests_total", **labels) - count for server, count in before.items()]
    assert load.failures == []
    assert sum(shares) == load.total
    # Each of Envoy's threads takes turns by itself: seen were differences of 0 and 1.
    assert max(shares) < 1.05 * min(shares), shares


def test_a_killed_replica_costs_nobody_an_answer(system: System, expected: Expected) -> None:
    system.scale(3)
    victim = system.servers()[0]
    with Load(system.address, expected) as load:
        # As the kernel does it, not as `docker kill`, which counts as a wish.
        os.kill(inspect(victim)["State"]["Pid"], signal.SIGKILL)
        load.wait(1500)
        wait_for("it runs again, and all are healthy", lambda: system.healthy() == 3)
        load.wait(300)
    assert load.failures == []
    assert inspect(victim)["RestartCount"] == 1


def test_a_stopped_replica_answers_until_nobody_asks_it(system: System, expected: Expected) -> None:
    system.scale(3)
    before = retries(system)
    victim = system.servers()[0]
    with Load(system.address, expected) as load:
        docker("kill", "--signal", "TERM", victim)
        docker("wait", victim)
        load.wait(500)
        state = inspect(victim)["State"]
    assert load.failures == []
    assert retries(system) == before
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert any("drained: every open request was answered" in line for line in logs(victim))
    docker("rm", victim)


def test_scaling_costs_nobody_an_answer(
    system: System, expected: Expected, record_property: Callable[[str, object], None]
) -> None:
    system.scale(1)
    before = set(system.servers())
    with Load(system.address, expected) as load:
        # Not waiting for Compose, which looks at their health every 5 s.
        system.compose("up", "--detach", "--no-recreate", "--scale", "server=3", "server")
        new = sorted(set(system.servers()) - before)
        assert len(new) == 2
        with ThreadPoolExecutor() as pool:
            firsts = list(pool.map(first_request, new))
        delays = [first - ready(server) for first, server in zip(firsts, new, strict=True)]
        load.wait(500)
        system.up("--no-recreate", "--scale", "server=1")
        load.wait(500)
    assert load.failures == []
    # What was promised; 0.1 … 1.3 s with six times as much to do as the machine has cores.
    assert max(delays) < 5.0, delays
    record_property("seconds from ready to the first request", [round(delay, 1) for delay in delays])


def ready(server: str) -> float:
    [line] = [line for line in logs(server) if '"ready: ' in line]
    return moment(json.loads(line)["time"])


def first_request(server: str) -> float:
    """When a replica had answered its first request, to a tenth of a second; it is asked from within."""
    program = (
        "import time, urllib.request as u\n"
        "page = b''\n"
        "while b'method=\"Classify\"' not in page:\n"
        "    time.sleep(0.1)\n"
        "    try: page = u.urlopen('http://localhost:8000/metrics').read()\n"
        "    except OSError: pass\n"
        "print(time.time())"
    )
    return float(docker("exec", server, "python3", "-c", program, timeout=PATIENCE))


def test_a_new_version_takes_over_without_a_failed_request(system: System) -> None:
    system.scale(3)
    other = onnx.load(MODEL)
    [bias] = [each for each in other.graph.initializer if each.name == "output.bias"]
    moved = numpy_helper.to_array(bias) + np.arange(10, dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    content = other.SerializeToString()
    expected = Expected({1: MODEL.read_bytes(), 2: content})
    assert np.abs(expected.scores[1] - expected.scores[2]).max(axis=1).min() > 0.001
    with Load(system.address, expected) as load:
        publish(system, 2, content)
        wait_for("version 2 answers", lambda: load.answers[2] > 0)
        wait_for("all have it", lambda: all(
            any("version 2 of model lecture_cnn is ready" in line for line in logs(server)) for server in
            system.servers()))  # fmt: skip
        load.wait(500)
        at_last = [versions[-1] for versions in load.versions]
    assert load.failures == []
    assert set(load.answers) == {1, 2}
    assert set(at_last) == {2}
    # And back: what has left the repository is served no more.
    with Load(system.address, expected) as load:
        in_volume(system, "rm", "-r", "/models/lecture_cnn/2")
        wait_for("version 1 answers", lambda: load.answers[1] > 0)
        load.wait(500)
        at_last = [versions[-1] for versions in load.versions]
    assert load.failures == []
    assert set(at_last) == {1}


def test_a_new_release_takes_over_without_a_failed_request(system: System, expected: Expected) -> None:
    """And back, as docs/operations.md says: the new servers beside the old, then without them."""
    system.scale(2)
    docker("tag", SERVER, "convlens-test/server-cpu:next")
    with Load(system.address, expected) as load:
        for image in ("convlens-test/server-cpu:next", SERVER):
            system.environment["SERVER_IMAGE"] = image
            old = set(system.servers())
            system.scale(4)
            system.up("--scale", "server=2")
            assert {inspect(server)["Config"]["Image"] for server in system.servers()} == {image}
            assert not old & set(system.servers())
            load.wait(300)
    assert load.failures == []
    docker("rmi", "convlens-test/server-cpu:next")


def test_models_of_a_folder(image: str, tmp_path: Path) -> None:
    """And one that is put there while the server runs."""
    tmp_path.chmod(0o755)
    own = System("convlens-test-models", MODELS=str(tmp_path))

    def models() -> str:
        return docker("exec", own.container("server"), "convlens", "models")

    shutil.copytree(MODEL.parents[1], tmp_path / "digits")
    try:
        own.compose("up", "--wait", "server", timeout=600)
        assert "digits" in models()
        assert "lecture_cnn" not in models()
        shutil.copytree(MODEL.parents[1], tmp_path / ".more")
        (tmp_path / ".more").rename(tmp_path / "more")
        wait_for("the new model is served", lambda: "more" in models())
    finally:
        own.down()


def publish(system: System, version: int, content: bytes) -> None:
    """Puts a version into the volume, complete or not at all."""
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        member = tarfile.TarInfo("model.onnx")
        member.size = len(content)
        file.addfile(member, BytesIO(content))
    place = "/models/lecture_cnn"
    script = f"mkdir {place}/.new && tar -xC {place}/.new && mv {place}/.new {place}/{version}"
    in_volume(system, "sh", "-c", script, content=archive.getvalue())


def in_volume(system: System, *command: str, content: bytes = b"") -> None:
    subprocess.run(
        ["docker", "run", "--rm", "--interactive", "--volume", f"{system.project}_models:/models", "--entrypoint",
         command[0], SERVER, *command[1:]],
        input=content, check=True, timeout=PATIENCE, capture_output=True,
    )  # fmt: skip
