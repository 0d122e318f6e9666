"""A repository in a store of fsspec is served from a cache on the local disk."""

from __future__ import annotations

import threading
import time

import fsspec
import pytest

from convlens.v1 import convlens_pb2 as pb
from convlens_server.errors import ModelNotReady
from convlens_server.repository import RepositoryError, entry
from repositories import request
from support import linear_model, own_weights, pixels, serving

IMAGE = pixels(1)


@pytest.fixture
def files():
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/store"):
        files.rm("/store", recursive=True)


@pytest.fixture
def upload(files, publish):
    """As `publish`, into the store."""

    def upload(name, version, content=None):
        if content is None:
            weights = own_weights(1000 + len(publish.weights.setdefault((name, version), [])) + 10 * version)
            publish.weights[name, version].append(weights)
            content = linear_model(weights).SerializeToString()
        files.pipe(f"/store/{name}/{version}/model.onnx", content)

    return upload


def answer(server, publish, name="a", version=0):
    response = server.stub.Classify(request(name, version), timeout=10)
    return response.version, publish.made_by(response, IMAGE)


def test_models_come_and_change(files, upload, publish, tmp_path):
    upload("a", 1)
    files.pipe("/store/a/config.pbtxt", b"max_batch_size: 3 version_policy { all {} }")
    options = {"model_control": "explicit", "model_cache": tmp_path / "cache"}
    with serving("memory://store", **options) as server:
        repository = server.state.repository
        assert answer(server, publish) == (1, 0)
        assert server.stub.GetModel(pb.GetModelRequest(), timeout=10).max_batch == 3
        upload("a", 2)
        repository.load("a")
        assert answer(server, publish) == (2, 0)
        upload("a", 2)
        repository.load("a")
        assert answer(server, publish) == (2, 1)
        repository.move_alias("a", "stable", 1)
        assert b'"stable": 1' in files.cat_file("/store/a/aliases.json")
        assert repository.version_number("a", "stable") == 1
        upload("a", 3, b"junk")
        with pytest.raises(ModelNotReady, match="version 3: not an ONNX model"):
            repository.load("a")
        assert answer(server, publish) == (2, 1)
    assert {path.parent.name for path in (tmp_path / "cache").rglob("model.onnx")} == {"1", "2", "3"}


def test_lazy_ones_are_not_downloaded_before_they_are_asked_for(files, upload, publish, tmp_path):
    upload("a", 1)
    upload("b", 1)
    with serving("memory://store", lazy=True, model_cache=tmp_path / "cache") as server:
        assert not (tmp_path / "cache").exists()
        assert answer(server, publish, "b") == (1, 0)
        assert len(list((tmp_path / "cache").rglob("model.onnx"))) == 1


def test_an_interrupted_download_leaves_the_old_version(files, upload, publish, tmp_path, monkeypatch):
    upload("a", 1)
    with serving("memory://store", model_control="explicit", model_cache=tmp_path / "cache") as server:
        upload("a", 1)

        def lost(self, source, target, **options):
            raise ConnectionResetError("the connection was lost")

        with monkeypatch.context() as patch:
            patch.setattr(type(files), "get_file", lost)
            with pytest.raises(ModelNotReady, match="cannot be downloaded: ConnectionResetError: the conn"):
                server.state.repository.load("a")
        assert answer(server, publish) == (1, 0)
        server.state.repository.load("a")
        assert answer(server, publish) == (1, 1)


@pytest.mark.parametrize("method", ["cat_file", "get_file"])
def test_what_fails_in_passing_is_tried_again_by_the_poll(files, upload, publish, tmp_path, monkeypatch, method):
    monkeypatch.setattr(entry, "_RETRY_SECONDS", 0.05)
    upload("a", 1)
    options = {"model_control": "poll", "poll_seconds": 0.02, "model_cache": tmp_path / "cache"}
    failed = threading.Event()

    def lost(self, *args, **options):
        failed.set()
        raise ConnectionResetError("the connection was lost")

    with serving("memory://store", **options) as server:
        with monkeypatch.context() as patch:
            patch.setattr(type(files), method, lost)
            upload("a", 2)
            assert failed.wait(30)
            assert answer(server, publish) == (1, 0)
        ends = time.monotonic() + 30
        while answer(server, publish) != (2, 0):
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert not any(version.error for version in server.state.repository.versions)


def test_nothing_there(tmp_path):
    fsspec.filesystem("memory").mkdir("/empty")
    for url, reason in (
        ("memory://nothing", "model repository memory://nothing is not there; see --models"),
        ("memory://empty", "no models in memory://empty: it must hold <name>/<version>"),
    ):
        with pytest.raises(RepositoryError, match=reason), serving(url, model_cache=tmp_path / "cache"):
            pass
    fsspec.filesystem("memory").rmdir("/empty")
