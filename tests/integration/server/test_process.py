"""The server as a process: configuration, signals, exit codes, logs."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
from PIL import ExifTags, Image

from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from support import TRANSPORTS, expected_logits, pixels, raw


def run(*flags, **options):
    return subprocess.run(
        [sys.executable, "-m", "convlens_server", *flags], capture_output=True, text=True, timeout=50, **options
    )


class TestConfiguration:
    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (["--port", "70000"], "argument --port: 70000 is not in 0 … 65535"),
            (["--http-port", "x"], "argument --http-port: 'x' is not a whole number"),
            (["--max-batch", "-1"], "argument --max-batch: -1 is not in 0 … 4096"),
            (["--max-queue-delay-ms", "nan"], "argument --max-queue-delay-ms: 'nan' is not a number"),
            (["--transport", "http"], "argument --transport: invalid choice: 'http'"),
            (["--tls-certificate", "/no/such.pem"], "argument --tls-certificate: /no/such.pem cannot be read"),
            (["--tls-client-ca", __file__], "argument --tls-client-ca: needs --tls-certificate and --tls-key"),
            (["--tls-key", __file__], "--tls-certificate and --tls-key: give both or neither"),
            (["--colour", "red"], "unrecognized arguments: --colour red"),
        ],
    )
    def test_a_wrong_value_is_refused_by_its_flag(self, flags, text):
        ended = run(*flags)
        assert ended.returncode == 2
        assert text in ended.stderr

    def test_flag_before_environment_before_file(self, start, models, tmp_path):
        file = tmp_path / "convlens.conf"
        file.write_text("max-batch = 5\nmax-queue = 55\nmax-images = 7\n")
        env = {"CONVLENS_MAX_BATCH": "6", "CONVLENS_MAX_QUEUE": "66"}

        process = start(models, "--config", str(file), "--max-batch", "8", env=env)

        [line] = [json.loads(line)["message"] for line in process.lines if "configuration" in line]
        assert "--max-batch 8 --max-queue 66 " in line
        assert "--max-images 7 " in line
        assert process.stop() == 0

    def test_a_wrong_value_in_the_file(self, tmp_path):
        file = tmp_path / "convlens.conf"
        file.write_text("max-batch = many\n")
        ended = run("--config", str(file))
        assert ended.returncode == 2
        assert "argument --max-batch: 'many' is not a whole number" in ended.stderr

    def test_cuda_is_not_replaced_in_silence(self, models):
        ended = run("--models", str(models), "--device", "cuda", "--port", "0", "--http-port", "0")
        if ended.returncode == 0:
            pytest.skip("this machine has a CUDA device")
        assert ended.returncode == 1
        assert "device cuda does not work" in ended.stderr

    def test_an_unknown_device(self, models):
        ended = run("--models", str(models), "--device", "tpu")
        assert ended.returncode == 1
        assert "device 'tpu' is unknown: use auto, cpu, cuda or cuda:<index>" in ended.stderr

    def test_no_models(self, tmp_path):
        ended = run("--models", str(tmp_path / "none"), "--port", "0", "--http-port", "0")
        assert ended.returncode == 1
        assert "cannot be read: No such file or directory; see --models" in ended.stderr

    @pytest.mark.parametrize("flag", ["--port", "--http-port"])
    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_an_occupied_port(self, models, flag, transport):
        other = {"--port": "--http-port", "--http-port": "--port"}[flag]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            flags = ["--models", str(models), flag, str(port), other, "0", "--transport", transport]
            ended = run(*flags, "--device", "cpu")
        assert ended.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_signal_drains(start, models, transport, number):
    """Under load: what was sent before is answered or refused as UNAVAILABLE, nothing is lost, exit 0."""
    process = start(models, "--transport", transport, "--max-queue", "100000")
    images = pixels(500)
    logits = expected_logits(images)
    outcomes: list[str] = []
    under_way = threading.Event()

    def work(part):
        with process.connect() as channel:
            stub = convlens_pb2_grpc.ConvLensStub(channel)
            for n in range(10_000):
                k = (part + 7 * n) % 499
                request = pb.ClassifyRequest(
                    model="linear", images=raw(images[k : k + 1]), top_k=1, include_logits=True
                )
                try:
                    response = stub.Classify(request, timeout=30)
                except grpc.RpcError as error:
                    outcomes.append(error.code().name)
                    return
                np.testing.assert_allclose(response.results[0].logits, logits[k], rtol=1e-4, atol=1e-4)
                outcomes.append("OK")
                if len(outcomes) > 200:
                    under_way.set()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    assert under_way.wait(30)

    code = process.stop(number)

    for thread in threads:
        thread.join()
    assert code == 0
    assert set(outcomes) == {"OK", "UNAVAILABLE"}
    assert outcomes.count("UNAVAILABLE") == 4
    messages = [json.loads(line)["message"] for line in process.lines]
    assert "drained: every open request was answered" in messages


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_open_stream_is_told_to_go_elsewhere(start, models, transport):
    process = start(models, "--transport", transport)
    release = threading.Event()

    def requests():
        for n in range(10):
            request = pb.ClassifyRequest(model="linear", images=raw(pixels(1, n)), top_k=1)
            yield pb.ClassifyStreamRequest(id=n, request=request)
        release.wait(40)

    with process.connect() as channel:
        answers = convlens_pb2_grpc.ConvLensStub(channel).ClassifyStream(requests(), timeout=40)
        seen = [next(answers).id for _ in range(10)]
        assert process.stop() == 0
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        release.set()
    assert sorted(seen) == list(range(10))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server is shutting down" in caught.value.details()


def test_logs_are_json_lines_with_the_request_id(start, models):
    process = start(models, "--log-level", "debug")
    with process.connect() as channel, pytest.raises(grpc.RpcError) as caught:
        convlens_pb2_grpc.ConvLensStub(channel).Classify(
            pb.ClassifyRequest(model="none"), timeout=10, metadata=[("x-request-id", "abc-123")]
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert process.stop() == 0

    records = [json.loads(line) for line in process.lines]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    [record] = [record for record in records if record.get("request_id") == "abc-123"]
    assert record["level"] == "debug"
    assert "model 'none' is not in the repository" in record["message"]
    assert record["method"] == "/convlens.v1.ConvLens/Classify"
    assert record["peer"].startswith("ipv4:127.0.0.1:")


def test_what_a_photo_tells_is_in_no_log(start, models):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "its author"
    photo = io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "JPEG", exif=exif)
    request = pb.ClassifyRequest(model="linear", images=pb.Images(encoded=pb.EncodedImages(files=[photo.getvalue()])))
    process = start(models, "--log-level", "debug")
    with process.connect() as channel:
        assert convlens_pb2_grpc.ConvLensStub(channel).Classify(request, timeout=10).results
    assert process.stop() == 0
    assert not [line for line in process.lines if "its author" in line]


def test_logs_for_people(models, tmp_path):
    ended = run("--models", str(tmp_path / "none"), "--log-format", "human", "--port", "0", "--http-port", "0")
    assert " error   cannot start: model repository" in ended.stderr
