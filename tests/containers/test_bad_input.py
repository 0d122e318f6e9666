"""What keeps a container from starting: it ends with one line that says what and how to cure it, and stays down."""

from __future__ import annotations

import json

import pytest

from containers.system import ROOT, System, container, docker, ended, inspect, is_ready, logs, message, wait_for

pytestmark = pytest.mark.timeout(600)

# Arguments of `docker run`, exit code, and what the last line says.
CASES = {
    "a wrong variable": (
        ["--env", "CONVLENS_MAX_BATCH=many"], 2, "argument --max-batch: 'many' is not a whole number (see --help)",
    ),
    "a variable with a wrong name": (
        ["--env", "CONVLENS_MAX_BATHC=4"], 2,
        "environment variable CONVLENS_MAX_BATHC is unknown: did you mean CONVLENS_MAX_BATCH?",
    ),
    "a missing secret": (
        ["--env", "CONVLENS_TLS_CERTIFICATE=/run/secrets/certificate", "--env", "CONVLENS_TLS_KEY=/run/secrets/key"], 2,
        "argument --tls-certificate: /run/secrets/certificate cannot be read: No such file or directory",
    ),
    "a GPU where there is none": (
        ["--env", "CONVLENS_DEVICE=cuda"], 1, "cannot start: device cuda does not work: the installed onnxruntime has",
    ),
    "a model store that is not there": (
        ["--env", "CONVLENS_MODELS=/nothing"], 1,
        "cannot start: model repository /nothing cannot be read: No such file or directory; see --models",
    ),
    "an empty model store": (
        ["--tmpfs", "/models"], 1, "cannot start: no models in /models: it must hold <name>/<version>/model.onnx",
    ),
    "a store without its package": (
        ["--env", "CONVLENS_MODELS=gs://bucket/models"], 1, "needs a package that is not installed",
    ),
    "a store that nobody answers for": (
        ["--env", "CONVLENS_MODELS=s3://bucket/models", "--env", "AWS_ENDPOINT_URL=http://127.0.0.1:9", "--env",
         "AWS_ACCESS_KEY_ID=key", "--env", "AWS_SECRET_ACCESS_KEY=secret"],
        1, "check --models, the network, and the store's address and credentials in the environment",
    ),
    "a cache that may not be written": (
        ["--read-only", "--env", "CONVLENS_MODELS=file:///models", "--env", "CONVLENS_MODEL_CACHE=/var/cache/models"],
        1, "Read-only file system: '/var/cache/models'",
    ),
    "an address of another machine": (
        ["--env", "CONVLENS_HOST=203.0.113.1"], 1, "cannot listen on 203.0.113.1:8000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_ends_with_one_line(image, case):
    arguments, code, text = CASES[case]
    with container("--env", "CONVLENS_LOG_LEVEL=error", *arguments) as name:
        assert ended(name)["ExitCode"] == code
        lines = [message(line) for line in logs(name)]
        assert text in lines[-1]
        assert not any("Traceback" in line for line in lines)


def test_a_volume_that_may_not_be_read(image, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir(mode=0o700)
    with container("--env", "CONVLENS_LOG_LEVEL=error", "--volume", f"{folder}:/models:ro") as name:
        assert ended(name)["ExitCode"] == 1
        [line] = logs(name)
        assert message(line) == (
            "cannot start: model repository /models cannot be read: Permission denied; see --models"
        )


def test_an_occupied_port(image):
    with container() as first:
        wait_for("it is ready", lambda: is_ready(first))
        with container("--network", f"container:{first}", "--env", "CONVLENS_LOG_LEVEL=error") as second:
            assert ended(second)["ExitCode"] == 1
            [line] = logs(second)
            assert message(line) == "cannot start: cannot listen on 0.0.0.0:8000: Address already in use"
        with container("--network", f"container:{first}", "--env", "CONVLENS_HTTP_PORT=8010") as second:
            assert ended(second)["ExitCode"] == 1
            assert "cannot listen on 0.0.0.0:8001" in message(logs(second)[-1])


def test_it_ends_in_less_than_two_seconds(image):
    """In seconds of the processor, of which a busy machine makes more by the clock."""
    for case in (
        "a wrong variable",
        "a missing secret",
        "a GPU where there is none",
        "a model store that is not there",
        "a store that nobody answers for",
    ):
        arguments, code, _ = CASES[case]
        program = (
            "import resource, subprocess, sys\n"
            "code = subprocess.run([sys.executable, '-m', 'convlens_server']).returncode\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(code, used.ru_utime + used.ru_stime)"
        )
        ran, seconds = docker("run", "--rm", *arguments, "--entrypoint", "python3", image, "-c", program).split()
        assert int(ran) == code
        assert float(seconds) < 2.0


class TestCompose:
    def test_a_server_that_cannot_start_is_unhealthy_and_stays_down(self, image, tmp_path):
        override = tmp_path / "wrong.json"
        override.write_text(json.dumps({"services": {"server": {"environment": {"CONVLENS_MAX_BATCH": "many"}}}}))
        system = System("convlens-test-bad", ROOT / "docker-compose.yml", override)
        try:
            started = system.compose("up", "--wait", "server", check=False, timeout=300)
            assert started.returncode != 0
            assert f"container {system.container('server')} is unhealthy" in started.stderr
            [server] = system.compose("ps", "--all", "--quiet", "server").stdout.split()
            wait_for("it is not tried again", lambda: inspect(server)["RestartCount"] == 5
                     and inspect(server)["State"]["Status"] == "exited")  # fmt: skip
            state = inspect(server)["State"]
            assert (state["ExitCode"], state["Health"]["Status"]) == (2, "unhealthy")
            assert "argument --max-batch: 'many' is not a whole number" in logs(server)[-1]
        finally:
            system.down()

    def test_tls_without_its_files(self, monkeypatch):
        monkeypatch.delenv("TLS_CERTIFICATE", raising=False)
        system = System("convlens-test-bad", ROOT / "docker-compose.yml", ROOT / "deploy" / "compose.tls.yml")
        refused = system.compose("config", "--quiet", check=False)
        assert refused.returncode != 0
        assert "required variable TLS_CERTIFICATE is missing a value: names the PEM file" in refused.stderr
