"""The other servers: answers are checked, all processes are counted and ended, and the best settings are taken."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st

import others
import others_report
import process_tree
import support
import wires
from answers import AnswerError
from contenders import LOADS
from convlens_server.network import load_network
from convlens_server.v2 import service_pb2 as pb2
from h2load import Load
from other_servers import settings
from others_report import CLASSIFY, MODEL_INFER
from processes import accepts, serving
from support import CLASSES, expected_logits, free_port, linear_model, pixels, put

IMAGES = pixels(4)
LOGITS = expected_logits(IMAGES).astype(np.float64)
POWERS = np.exp(LOGITS - LOGITS.max(1, keepdims=True))
SCORES = (POWERS / POWERS.sum(1, keepdims=True)).astype(np.float32)
# Prints its child's process id, then waits. The child takes a tenth of a second of CPU time, says so, and waits.
PARENT = """
import subprocess, sys, time
work = "import time\\nwhile time.process_time() < 0.1: pass\\nprint(1, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", work])
print(child.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def answering(status, content):
    """A server that answers every POST alike; gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_this_server_is_asked_both_ways(tmp_path):
    # As the benchmark's network does, it takes images itself.
    network = load_network(put(tmp_path / "float", "linear", 1, linear_model()))
    model = onnx.ModelProto.FromString(network.model.SerializeToString())
    del model.graph.output[1:]
    put(tmp_path / "models", "linear", 1, model)
    with support.serving(tmp_path / "models") as served:
        ways = wires.classify("linear", CLASSES), wires.model_infer("linear", network.input_name)
        for wire in ways:
            assert wire.check(served.state.port, IMAGES, SCORES) == len(wire.ask(served.state.port, IMAGES))
            with pytest.raises(AnswerError, match="other scores than the network's"):
                wire.check(served.state.port, IMAGES[::-1], SCORES)
        with pytest.raises(AnswerError, match="NOT_FOUND"):
            wires.classify("none", CLASSES).check(served.state.port, IMAGES, SCORES)


def test_scores_as_bytes_and_as_json():
    with answering(200, SCORES.tobytes()) as port:
        assert wires.bytes_over_http("/x").check(port, IMAGES, SCORES) == SCORES.nbytes
        with pytest.raises(AnswerError, match="other scores"):
            wires.bytes_over_http("/x").check(port, IMAGES, SCORES + np.float32(1e-3))
    with answering(200, json.dumps(SCORES.tolist()).encode()) as port:
        wires.json_over_http("/x", "images").check(port, IMAGES, SCORES)


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (503, SCORES.tobytes(), "status 503"),
        (200, SCORES.tobytes()[:-1], "no scores"),
        (200, b"", "shape"),
        (200, SCORES[:2].tobytes(), "shape"),
    ],
)
def test_what_is_no_answer(status, content, said):
    with answering(status, content) as port, pytest.raises(AnswerError, match=said):
        wires.bytes_over_http("/x").check(port, IMAGES, SCORES)


@pytest.mark.parametrize("answer", [b"\xff", b""], ids=["not of its kind", "without scores"])
def test_what_is_no_message_with_scores(monkeypatch, answer):
    monkeypatch.setattr(wires.Wire, "ask", lambda *_: answer)
    with pytest.raises(AnswerError, match="no scores"):
        wires.model_infer("m", "x").check(0, IMAGES, SCORES)


def test_scores_that_are_no_numbers():
    nothing = np.full_like(SCORES, np.nan).tobytes()
    with answering(200, nothing) as port, pytest.raises(AnswerError, match="other scores"):
        wires.bytes_over_http("/x").check(port, IMAGES, SCORES)


def test_nobody_answers():
    port = free_port()
    for wire in (wires.bytes_over_http("/x"), wires.bytes_value("/a.B/C")):
        with pytest.raises(AnswerError):
            wire.ask(port, IMAGES)


@given(st.integers(1, 60))
def test_bytes_are_framed_as_protobuf_does(count):
    images = np.full((count, 8, 8, 1), 7, np.uint8)
    assert BytesValue.FromString(wires.bytes_value("/a.B/C").encode(images)).value == images.tobytes()


def test_images_as_elements_of_type_bytes():
    request = pb2.ModelInferRequest.FromString(wires.model_infer("m", "x", "BYTES").encode(IMAGES))
    assert list(request.inputs[0].shape) == [len(IMAGES)]
    assert request.raw_input_contents[0] == b"".join(b"\x40\0\0\0" + image.tobytes() for image in IMAGES)


def test_by_http_1_each_request_has_a_connection():
    assert wires.bytes_over_http("/x").load(Load(8, 16)) == Load(128, 1)
    assert wires.bytes_value("/a.B/C").load(Load(8, 16)) == Load(8, 16)


def test_all_processes_of_a_server_are_counted():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            printed = {parent.stdout.readline(), parent.stdout.readline()} - {"1\n"}
            family = process_tree.tree(parent.pid)
            assert [each.pid for each in family] == [parent.pid, *map(int, printed)]
            used = process_tree.usage(parent.pid)
            assert used.processes == 2
            assert used.cpu_seconds > 0.05
            assert used.memory_mb > 2
        finally:
            # Another process that has the id of one of these today is not ended.
            process_tree.end([process._replace(started=process.started - 1) for process in family])
            assert parent.poll() is None
            process_tree.end(family)
    assert process_tree.tree(parent.pid) == []


def test_what_a_server_leaves_behind_is_ended_with_it():
    port = free_port()
    # The child outlives its parent, and listens.
    child = f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); time.sleep(600)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    with serving([sys.executable, "-c", parent], lambda: accepts(port)) as server:
        assert len(process_tree.tree(server.pid)) == 2
    while accepts(port):  # at most as long as a test may take
        time.sleep(0.01)


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_settings_are_told_apart_and_use_as_many_cores_as_there_are(cores):
    found = settings(cores)
    assert len({(each.server, each.text, each.wire.name) for each in found}) == len(found)
    for each in found:
        workers = int(each.told.get("BENCH_WORKERS", 1)) or 1
        assert workers * int(each.told["BENCH_THREADS"]) == cores
        assert re.fullmatch(r"\S+ [\d.]+", each.package)


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("other_servers._ENVIRONMENTS", tmp_path)
    exam = others.Exam(IMAGES, SCORES, tmp_path, 1)
    assert exam.measure_other(settings(1)[0], tmp_path / "network.onnx") == {"problem": "not installed"}


@pytest.mark.parametrize(("each_time", "restarts"), [(5, 0), (2, 2), (1, None)])
def test_a_server_that_ends_is_started_again_for_the_loads_that_are_left(tmp_path, monkeypatch, each_time, restarts):
    monkeypatch.setattr("other_servers._ENVIRONMENTS", tmp_path)
    setting = settings(1)[0]
    setting.python.parent.mkdir(parents=True)
    setting.python.touch()
    exam = others.Exam(IMAGES, SCORES, tmp_path, 1)

    def measure(self, command, environment, asked, loads):
        return {setting.server: {"points": [{"load": load.name} for load in loads[:each_time]]}}

    monkeypatch.setattr(others.Exam, "measure", measure)
    found = exam.measure_other(setting, tmp_path / "network.onnx")
    if restarts is None:
        assert found == {"problem": "ended under load 4 times"}
    else:
        assert found == {"points": [{"load": load.name} for load in LOADS], "restarts": restarts}


def result():
    """Two repeats of two servers that answer and one that does not."""

    def server(rate):
        point = {"images_per_second": rate, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 100.0}
        points = [{"load": load, **point} for load in ("1", "8", "32", "128", "4 × 32 images")]
        return {"start_seconds": 1.0, "processes": 2, "ready_mb": 90.0, "loaded_mb": 100.0, "points": points}

    def turn(rate):
        servers = {CLASSIFY: server(rate), MODEL_INFER: server(rate), "Fast": server(rate / 4)}
        raw = [{"images_per_second": 2 * rate}, {"images_per_second": rate}]
        return {"raw": raw, "servers": servers}

    machine = {
        "cpu": "Some CPU", "cores": 2, "memory_gib": 23.5, "load_before": 0.0, "kernel": "Linux 6", "python": "3.11",
        "grpcio": "1.85", "onnxruntime": "1.32", "h2load": "nghttp2/1.52.0",
    }  # fmt: skip
    trial = {"server": "Fast", "wire": "gRPC, bytes"}
    return {
        "settings": {"seconds": 1, "repeats": 2, "cores": 2, "servers": ["Fast", "Gone"]},
        "machine": machine,
        "packages": {"Fast": "fast 1.2", "Gone": "gone 3.4"},
        "trials": [
            {**trial, "settings": "1 worker", "images_per_second": 10.0},
            {**trial, "settings": "2 workers", "images_per_second": 20.0},
            {**trial, "settings": "3 workers", "problem": "failed under load"},
            {"server": "Gone", "wire": "gRPC, bytes", "settings": "1 worker", "problem": "not installed"},
        ],
        "repeats": [turn(1000.0), turn(2000.0)],
    }


def test_the_report_has_the_best_settings_and_says_who_is_missing():
    text = others_report.render(result())
    assert "`python bench/others.py --seconds 1 --repeats 2`" in text
    assert "| 32 | Fast | 375 (250 – 500) | 0.125 | 0.25 | 1 | 2 | 100 |" in text
    assert "| Fast | fast 1.2 | gRPC, bytes | 2 workers | 1 | 2 | 90 | 100 |" in text
    assert "Problems: Gone (not installed)." in text
    assert "| Fast | gRPC, bytes | 2 workers | **20** |" in text
    assert "| Fast | gRPC, bytes | 3 workers | failed under load |" in text


def test_a_repeat_that_failed_is_said_and_left_out():
    measured = result()
    measured["repeats"][1]["servers"]["Fast"] = {"problem": "failed under load"}
    text = others_report.render(measured)
    assert "Problems: Fast (failed under load in 1 of 2 repeats), Gone (not installed)." in text
    assert "| 32 | Fast | 250 | 0.125 | 0.25 | 1 | 2 | 100 |" in text
    measured["repeats"][0]["servers"]["Fast"] = {"problem": "did not start"}
    text = others_report.render(measured)
    assert "Problems: Fast (did not start, failed under load in 2 of 2 repeats), Gone" in text
    assert "| 32 | Fast" not in text


def test_a_server_that_was_started_again_is_told():
    measured = result()
    measured["repeats"][0]["servers"]["Fast"]["restarts"] = 2
    assert "Fast (ended under load, and was started again, 2 times)" in others_report.render(measured)


def test_settings_alone_can_be_shown():
    measured = {**result(), "repeats": []}
    assert others_report.render(measured).count("\n| --- |") == 1
