"""The bytes of layers that are held for callers who leave are let go."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest

from convlens_server.lens import Lens
from convlens_server.v2 import service_pb2 as pb
from integration.v2.asking import Asked, normalised, outputs, tensor
from support import TRANSPORTS, conv_model, put, serving

CONV_1 = 4 * 6 * 16 * 12


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("streams", [False, True])
def test_those_who_leave(tmp_path, monkeypatch, transport, streams):
    put(tmp_path, "conv", 1, conv_model())
    gate, entered = threading.Semaphore(0), threading.Semaphore(0)
    maps = Lens.maps

    def held(lens, *rest):
        entered.release()
        assert gate.acquire(timeout=30)
        return maps(lens, *rest)

    images = np.zeros((1, 16, 12, 3), np.uint8)
    request = pb.ModelInferRequest(model_name="conv", outputs=outputs("conv_1"), **tensor("x", normalised(images)))
    with serving(tmp_path, transport=transport, max_feature_map_bytes=CONV_1) as server:
        server.__class__ = Asked
        server.ask("ModelInfer", request)
        monkeypatch.setattr(Lens, "maps", held)
        unary = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        # Four times the limit is held at most: without being let go the fifth were refused.
        for _ in range(6):
            call = server.stream(iter([request])) if streams else unary.future(request.SerializeToString(), timeout=30)
            assert entered.acquire(timeout=20)
            call.cancel()
            gate.release()
        monkeypatch.setattr(Lens, "maps", maps)
        ends = time.monotonic() + 20
        while (code := unary.future(request.SerializeToString(), timeout=30).code()) != grpc.StatusCode.OK:
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert time.monotonic() < ends


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_those_who_stay(tmp_path, transport):

    put(tmp_path, "conv", 1, conv_model())
    images = np.zeros((1, 16, 12, 3), np.uint8)
    request = pb.ModelInferRequest(model_name="conv", outputs=outputs("conv_1"), **tensor("x", normalised(images)))
    with serving(tmp_path, transport=transport, max_feature_map_bytes=CONV_1) as server:
        server.__class__ = Asked
        for _ in range(12):
            assert server.ask("ModelInfer", request).outputs

        def one_by_one(answered):
            for _ in range(12):
                yield request
                assert answered.acquire(timeout=20)

        answered = threading.Semaphore(0)
        for answer in server.stream(one_by_one(answered)):
            assert not answer.error_message
            answered.release()
