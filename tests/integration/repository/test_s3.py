"""A repository in S3, as s3fs reads it from a server that speaks it (moto), each in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import boto3
import grpc
import httpx
import numpy as np
import pytest

from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from repositories import request
from support import Process, expected_logits, free_port, linear_model, own_weights, pixels

# Servers in processes of their own take their time to start where many run.
pytestmark = pytest.mark.timeout(180)

IMAGE = pixels(1)
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


class S3:
    """A server of S3 and a bucket in it."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        self.bucket = ""
        self.weights = {}

    def make_bucket(self, name):
        self.bucket = name
        self.client.create_bucket(Bucket=name)

    def put(self, path, content):
        self.client.put_object(Bucket=self.bucket, Key=f"models/{path}", Body=content)

    def get(self, path):
        return self.client.get_object(Bucket=self.bucket, Key=f"models/{path}")["Body"].read()

    def publish(self, version, seed):
        """A model whose answers no other seed gives."""
        content = linear_model(own_weights(seed)).SerializeToString()
        self.put(f"a/{version}/model.onnx", content)
        return content

    def environment(self, **changes):
        """Of a server that reads it."""
        clean = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        fixed = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.url}
        return {**clean, **fixed, **KEYS, **changes}


@contextlib.contextmanager
def s3_server(**env):
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **env})
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=10).close()
                break
            except urllib.error.URLError:
                assert process.poll() is None
                time.sleep(0.05)
        s3 = S3(port)
        with contextlib.closing(s3.client):
            yield s3, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server():
    with s3_server() as (s3, _):
        yield s3


@pytest.fixture
def s3(server, request):
    server.make_bucket(f"bucket-{request.node.name.replace('_', '-').partition('[')[0][:50]}")
    return server


class Serving:
    """A server of what is in the bucket."""

    def __init__(self, s3, cache, *flags, **env):
        flags = ("--model-cache", str(cache), "--threads", "1", *flags)
        self.process = Process(f"s3://{s3.bucket}/models", *flags, env=s3.environment(**env))
        self.channel = self.process.connect()
        self.stub = convlens_pb2_grpc.ConvLensStub(self.channel)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.process.http_port}/v2", timeout=40)

    def answer(self, version=0):
        """The version that answers, and the seed of its weights."""
        response = self.stub.Classify(request("a", version), timeout=20)
        logits = np.array([result.logits for result in response.results])
        for seed in range(10):
            if np.allclose(logits, expected_logits(IMAGE, own_weights(seed)), rtol=1e-4, atol=1e-3):
                return response.version, seed
        raise AssertionError("no model made this answer")

    def load(self):
        """The status, and what is wrong."""
        response = self.http.post("/repository/models/a/load")
        return response.status_code, response.json().get("error", "")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.channel.close()
        self.http.close()
        assert self.process.stop() == 0


def test_versions_come_change_and_stay_in_the_cache(s3, tmp_path):
    s3.publish(1, 1)
    s3.put("a/config.pbtxt", b"max_batch_size: 3 version_policy { all {} }")
    with Serving(s3, tmp_path / "cache", "--model-control", "explicit") as serving:
        assert serving.answer() == (1, 1)
        assert serving.stub.GetModel(pb.GetModelRequest(), timeout=10).max_batch == 3
        s3.publish(2, 2)
        assert serving.load() == (200, "")
        assert serving.answer() == (2, 2)
        s3.publish(2, 3)
        assert serving.load() == (200, "")
        assert (serving.answer(), serving.answer(1)) == ((2, 3), (1, 1))

        s3.put("a/2/model.onnx", b"junk")
        status, error = serving.load()
        assert (status, serving.answer()) == (503, (2, 3))
        assert "not an ONNX model" in error
        content = s3.publish(2, 4)
        s3.put("a/2/SHA256SUMS", f"{'0' * 64}  model.onnx\n".encode())
        status, error = serving.load()
        assert (status, serving.answer()) == (503, (2, 3))
        assert "model.onnx does not have the checksum that SHA256SUMS says" in error
        s3.put("a/2/SHA256SUMS", f"{hashlib.sha256(content).hexdigest()}  model.onnx\n".encode())
        assert serving.load() == (200, "")
        assert serving.answer() == (2, 4)

        response = serving.http.post("/repository/models/a/aliases/stable", json={"version": "1"})
        assert (response.status_code, s3.get("a/aliases.json")) == (200, b'{\n  "stable": 1\n}\n')

    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.onnx")}
    assert {path.parent.name for path in cached} == {"1", "2"}
    with Serving(s3, tmp_path / "cache") as serving:
        assert serving.answer() == (2, 4)
        assert serving.http.get("/repository/models/a/aliases").json() == {"stable": "1"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.onnx")} == cached


def test_it_is_followed(s3, tmp_path):
    with Serving(s3, tmp_path, "--model-control", "poll", "--poll-seconds", "0.1") as serving:

        def until(expected):
            ends = time.monotonic() + 30
            while time.monotonic() < ends:
                with contextlib.suppress(grpc.RpcError):
                    if serving.answer() == expected:
                        return
                time.sleep(0.02)
            raise AssertionError(f"{expected} never came")

        s3.publish(1, 1)
        until((1, 1))
        s3.publish(2, 2)
        until((2, 2))
        s3.publish(2, 3)
        until((2, 3))
        s3.client.delete_object(Bucket=s3.bucket, Key="models/a/2/model.onnx")
        until((1, 1))


def test_it_goes_away(tmp_path):
    """What is loaded serves on."""
    with s3_server() as (s3, process):
        s3.make_bucket("bucket")
        s3.publish(1, 1)
        with Serving(s3, tmp_path, "--model-control", "explicit", AWS_MAX_ATTEMPTS="1") as serving:
            process.kill()
            process.wait()
            status, error = serving.load()
            assert status == 503
            assert "model repository s3://bucket/models cannot be read: EndpointConnectionError" in error
            assert serving.answer() == (1, 1)


def refused(models, env):
    """The last line of a server that does not start."""
    command = [sys.executable, "-m", "convlens_server", "--models", models, "--port", "0", "--http-port", "0"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--model-control", "poll"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def test_nobody_listens():
    line = refused("s3://bucket/models", S3(free_port()).environment())
    assert "model repository s3://bucket/models cannot be read: EndpointConnectionError" in line
    assert "check --models, the network, and the store's address and credentials in the environment" in line


def test_it_breaks_off_each_answer():
    requests = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_each():
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        requests.append(connection.recv(65_536))

        thread = threading.Thread(target=close_each, daemon=True)
        thread.start()
        configured = {"FSSPEC_S3": '{"config_kwargs": {"user_agent_extra": "configured"}}'}
        line = refused("s3://bucket/models", S3(listener.getsockname()[1]).environment() | configured)
        # Closing it alone would not end the accept.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "model repository s3://bucket/models cannot be read: " in line
    # s3fs asks five times, and its HTTP client twice; with the retries that later requests have it would be 50.
    assert 1 <= len(requests) <= 10
    assert any(b"configured" in request for request in requests)


def test_a_bucket_that_is_not_there(server):
    assert "model repository s3://none/models is not there; see --models" in refused(
        "s3://none/models", server.environment()
    )


def test_no_credentials(server):
    env = server.environment(**dict.fromkeys(KEYS, ""))
    assert "model repository s3://none/models cannot be read: NoCredentialsError" in refused("s3://none/models", env)


def test_wrong_credentials():
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="1") as (s3, _):
        s3.make_bucket("bucket")
        line = refused("s3://bucket/models", s3.environment(AWS_ACCESS_KEY_ID="other"))
    assert "model repository s3://bucket/models cannot be read: " in line
    assert "The AWS Access Key Id you provided does not exist" in line
