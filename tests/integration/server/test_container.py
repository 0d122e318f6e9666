"""What the server does for being run in a container."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request

import grpc
import pytest

from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from convlens_server.probe import ask_grpc, ask_http
from support import TRANSPORTS, free_port, pixels, raw, serving


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_probe(models, transport):
    with serving(models, transport=transport) as server:
        assert ask_grpc(server.state.port) == ""
        assert ask_http(server.state.http_port) == ""
        # Not gRPC.
        assert "closed" in ask_grpc(server.state.http_port)


def test_the_probe_without_a_server():
    port = free_port()
    ended = subprocess.run(
        [sys.executable, "-m", "convlens_server.probe"], capture_output=True, text=True, timeout=30,
        env={"CONVLENS_PORT": str(port)},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "[Errno 111] Connection refused\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_requests_are_taken_until_balancers_have_noticed(start, models, transport):
    process = start(models, "--transport", transport, "--drain-delay", "60")
    request = pb.ClassifyRequest(model="linear", images=raw(pixels(1)))
    with process.connect() as channel:
        stub = convlens_pb2_grpc.ConvLensStub(channel)
        stub.Classify(request, timeout=10)
        process.process.send_signal(signal.SIGTERM)
        line = next(line for line in process.process.stdout if "not serving, says health" in line)
        assert json.loads(line)["message"] == "not serving, says health; requests are taken for 60 s more"
        assert ask_grpc(process.port) == f"port {process.port}: not serving"
        assert ask_http(process.http_port) == f"port {process.http_port}: HTTP/1.1 503 Service Unavailable"
        stub.Classify(request, timeout=10)
        asked = urllib.request.Request(
            f"http://127.0.0.1:{process.http_port}/convlens.v1.ConvLens/ListModels",
            b"{}",
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert b'"linear"' in answer.read()
    # The second ends it.
    assert process.stop() == 128 + signal.SIGTERM


def test_after_the_delay_it_drains(start, models):
    process = start(models, "--drain-delay", "0.5")
    failures = []
    stop = threading.Event()

    def ask():
        with process.connect() as channel:
            stub = convlens_pb2_grpc.ConvLensStub(channel)
            while not stop.is_set():
                try:
                    stub.Classify(pb.ClassifyRequest(model="linear", images=raw(pixels(1))), timeout=10)
                except grpc.RpcError as error:
                    failures.append(error.code())
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    code = process.stop()
    stop.set()
    thread.join()
    assert code == 0
    assert failures in ([], [grpc.StatusCode.UNAVAILABLE])
    messages = [json.loads(line)["message"] for line in process.lines]
    assert messages.index("not serving, says health; requests are taken for 0.5 s more") < messages.index(
        "draining: new requests are refused, open ones have 30 s"
    )


def test_too_little_memory_for_the_libraries():
    """Found out before they are imported."""
    program = (
        "from convlens_server import start\n"
        "start.ControlGroups.memory = lambda self: 79 * 2**20\n"
        "try:\n    start.prepare()\n"
        "finally:\n    import sys; assert not {'grpc', 'numpy', 'onnx'} & sys.modules.keys()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr == (
        "convlens serve: the memory limit is 79 MiB, but a server takes at least 80 MiB: raise the limit of the "
        "container or its control group\n"
    )


def test_a_variable_with_a_wrong_name(models):
    ended = subprocess.run(
        [sys.executable, "-m", "convlens_server", "--models", str(models)], capture_output=True, text=True, timeout=30,
        env={"CONVLENS_MAX_BATHC": "4", "CONVLENS_SERVER": "other:1", "CONVLENS_PORT_8001_TCP": "tcp://10.0.0.1:8001"},
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == (
        "convlens serve: error: environment variable CONVLENS_MAX_BATHC is unknown: did you mean CONVLENS_MAX_BATCH? "
        "(see --help)\n"
    )
