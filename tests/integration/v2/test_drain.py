"""Requests over HTTP that are open when the server is told to end."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from convlens_server.engine import Engine
from support import pixels, serving


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v2/models/native/infer",
            {
                "inputs": [
                    {"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": pixels(1).ravel().tolist()}
                ]
            },
        ),
        (
            "/convlens.v1.ConvLens/Classify",
            {
                "model": "native",
                "images": {"raw": {"pixels": "A" * 84 + "AA==", "height": 8, "width": 8, "channels": 1}},
            },
        ),
    ],
)
def test_they_are_answered_and_new_ones_refused(models, monkeypatch, path, body):
    gate, running = threading.Event(), threading.Event()
    run = Engine.run

    def held(engine, pixels):
        running.set()
        gate.wait(30)
        return run(engine, pixels)

    answers = []
    with serving(models) as server:
        monkeypatch.setattr(Engine, "run", held)
        base = f"http://127.0.0.1:{server.state.http_port}"

        def ask():
            answers.append(httpx.post(base + path, json=body, timeout=30))

        def release():
            ends = time.monotonic() + 20
            while httpx.get(f"{base}/v2/health/ready", timeout=10).status_code == 200:
                assert time.monotonic() < ends
            answers.append(httpx.post(base + path, json=body, timeout=30))
            gate.set()

        threads = [threading.Thread(target=ask), threading.Thread(target=release)]
        threads[0].start()
        assert running.wait(20)
        threads[1].start()
    for thread in threads:
        thread.join()
    refused, answered = answers
    assert (refused.status_code, answered.status_code) == (503, 200)
    assert "shutting down" in refused.text
