"""Models that are loaded by the first request for them, and leave the memory for others."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from convlens_server.v2 import service_pb2 as v2
from repositories import fails, request
from support import TRANSPORTS, pixels, raw, serving

IMAGE = pixels(1)


def states(server):
    versions = server.stub.ListModels(pb.ListModelsRequest(), timeout=10).models
    return {(each.model, each.version): pb.ModelState.Name(each.state)[12:] for each in versions}


@pytest.fixture
def slow(monkeypatch):
    """Loading waits for the event that this gives; it is told of each that begins."""
    from convlens_server.repository import loading

    real = loading.Model
    go, begun = threading.Event(), []

    def model(name, number, *rest):
        begun.append((name, number))
        assert go.wait(30)
        return real(name, number, *rest)

    monkeypatch.setattr(loading, "Model", model)
    go.begun = begun
    yield go
    go.set()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_way_of_asking_loads(folder, publish, transport):
    for name in "abcd":
        publish(name, 1)
    with serving(folder, lazy=True, transport=transport) as server:
        assert set(states(server).values()) == {"UNLOADED"}
        assert server.http("/readyz") == (200, "ready\n")
        response = server.stub.Classify(request("a"), timeout=10)
        assert (response.version, publish.made_by(response, IMAGE)) == (1, 0)
        assert states(server) == {("a", 1): "READY"} | {(name, 1): "UNLOADED" for name in "bcd"}
        assert server.stub.GetModel(pb.GetModelRequest(model="b"), timeout=10).ready_versions == [1]
        maps = pb.GetFeatureMapsRequest(model="c", images=raw(IMAGE), all_layers=True)
        assert [each.layer for each in server.stub.GetFeatureMaps(maps, timeout=10)]
        messages = [pb.ClassifyStreamRequest(id=n, request=request("d", seed=n)) for n in range(50)]
        answers = {each.id: each.response for each in server.stub.ClassifyStream(iter(messages), timeout=10)}
        assert [publish.made_by(answers[n], pixels(1, n)) for n in range(50)] == [0] * 50
        assert set(states(server).values()) == {"READY"}
        assert server.metric("convlens_models_loaded") == 4


def test_many_wait_for_one_loading_and_others_are_served(folder, publish, slow):
    publish("a", 1)
    publish("b", 1)
    with serving(folder, lazy=True) as server:
        slow.set()
        server.stub.Classify(request("b"), timeout=10)
        slow.clear()
        slow.begun.clear()
        waiting = [server.stub.Classify.future(request("a", seed=n), timeout=30) for n in range(50)]
        while not slow.begun:
            time.sleep(0.01)
        for _ in range(20):
            assert server.stub.Classify(request("b"), timeout=10).model == "b"
        # Whose time is over while the model is loaded is told so, by its own clock.
        with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
            server.stub.Classify(request("a"), timeout=0.2)
        waiting[7].cancel()
        assert not any(call.done() for n, call in enumerate(waiting) if n != 7)
        slow.set()
        for n, call in enumerate(waiting):
            if n != 7:
                assert publish.made_by(call.result(), pixels(1, n)) == 0
        assert slow.begun == [("a", 1)]


def test_one_that_cannot_be_loaded(folder, publish):
    publish("a", 1, b"junk")
    publish("b", 1)
    with serving(folder, lazy=True, model_control="explicit") as server:
        for _ in range(3):
            with fails(grpc.StatusCode.FAILED_PRECONDITION) as failures:
                server.stub.Classify(request("a"), timeout=10)
            assert "version 1 of model 'a' could not be loaded: not an ONNX model" in failures[0].text
        assert states(server) == {("a", 1): "FAILED", ("b", 1): "UNLOADED"}
        publish("a", 1)
        server.state.repository.load("a")
        assert publish.made_by(server.stub.Classify(request("a"), timeout=10), IMAGE) == 0


def test_a_bound_on_what_is_loaded(folder, publish):
    names = [f"model_{n}" for n in range(6)]
    for name in names:
        publish(name, 1)
    with serving(folder, lazy=True, max_loaded=2, model_control="explicit") as server:

        def loaded():
            return sorted(model.name for model in server.state.repository.models)

        for name in ("model_0", "model_1", "model_0", "model_2"):
            server.stub.Classify(request(name), timeout=10)
        assert loaded() == ["model_0", "model_2"]
        server.state.repository.load("model_5")
        assert loaded() == ["model_2", "model_5"]

        # Many callers of more models than there is room for: all are answered.
        def call(n):
            name = names[n * 7 % len(names)]
            response = server.stub.Classify(request(name, seed=n), timeout=60)
            assert response.model == name
            assert publish.made_by(response, pixels(1, n)) == 0
            assert len(server.state.repository.models) <= 2

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(call, range(60)))
        assert len(loaded()) == 2
        assert server.metric("convlens_models_loaded") == 2
        assert server.metric("convlens_images_total", model="model_0") > 2


def test_what_leaves_is_freed(folder, publish):
    """Though the server has told the collector of cycles not to look at what was there at start."""
    publish("a", 1)
    publish("b", 1)
    gone = []
    maps = pb.GetFeatureMapsRequest(model="a", images=raw(IMAGE), all_layers=True)
    metadata = v2.ModelMetadataRequest(name="a")
    infer = v2.ModelInferRequest(model_name="a", raw_input_contents=[bytes(4 * IMAGE.size)])
    infer.inputs.add(name="x", datatype="FP32", shape=[1, 1, 8, 8])
    with serving(folder, model_control="explicit") as server:
        repository = server.state.repository
        for change in ("unload", "swap"):
            # What each service keeps of a model, it lets go.
            server.stub.Classify(request("a"), timeout=10)
            list(server.stub.GetFeatureMaps(maps, timeout=10))
            for method, message in (("ModelMetadata", metadata), ("ModelInfer", infer)):
                path = f"/inference.GRPCInferenceService/{method}"
                server.channel.unary_unary(path)(message.SerializeToString(), timeout=10)
            gone.append(weakref.ref(next(model for model in repository.models if model.name == "a")))
            if change == "unload":
                repository.unload("a")
                repository.load("a")
            else:
                publish("a", 1)
                repository.load("a")
        ends = time.monotonic() + 20
        while any(each() is not None for each in gone) and time.monotonic() < ends:
            gc.collect()
            time.sleep(0.01)
        assert [each() for each in gone] == [None, None]


def resident(process):
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


@pytest.mark.timeout(180)
def test_two_hundred_models(folder, publish, start):
    """Start and index cost what they should: nothing is loaded, and no more memory taken than 100 MB."""
    for n in range(200):
        publish(f"model_{n:03}", 1)
    process = start(folder, "--lazy", "--max-loaded", "10")
    with process.connect() as channel:
        stub = convlens_pb2_grpc.ConvLensStub(channel)
        index = stub.ListModels(pb.ListModelsRequest(), timeout=30).models
        assert len(index) == 200
        assert {each.state for each in index} == {pb.MODEL_STATE_UNLOADED}
        assert resident(process) < 100
        for n in np.random.default_rng(1).permutation(200)[:40]:
            response = stub.Classify(request(f"model_{n:03}"), timeout=30)
            assert publish.made_by(response, IMAGE) == 0
        loaded = [each for each in stub.ListModels(pb.ListModelsRequest(), timeout=30).models if each.state == 1]
        assert len(loaded) == 10
    assert process.stop() == 0
