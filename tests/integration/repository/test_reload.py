"""Versions are loaded, swapped, broken and unloaded under load: every request is answered, by a whole version.

CONVLENS_RELOAD_SECONDS=60 gives the length that is meant; without, each transport has some seconds.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections import Counter

import grpc
import pytest
from PIL import Image

from convlens.v1 import convlens_pb2 as pb
from convlens_server.errors import ModelNotReady
from repositories import request
from support import TRANSPORTS, pixels, serving

SECONDS = float(os.environ.get("CONVLENS_RELOAD_SECONDS", "6"))
# Of the changes; the 60 s have one a second.
EVERY = min(1.0, SECONDS / 30)
CALLERS = 3
AT_ONCE = 16


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_reload_under_load(folder, publish, transport):
    publish("a", 1)
    publish("other", 1)
    (folder / "a" / "config.pbtxt").write_text("version_policy { all {} }")
    before = set(threading.enumerate())
    ends = time.monotonic() + SECONDS
    seen: Counter[tuple[int, int]] = Counter()
    away: Counter[str] = Counter()
    lock = threading.Lock()

    with serving(folder, transport=transport, model_control="explicit") as server:

        def call(caller):
            """Half for what is the default at the time, a quarter for a version that stays, a quarter for `other`.

            Every other one brings files: it finds its model, and comes to its queue when they are decoded.
            """
            channel = server.connect()
            stub = type(server.stub)(channel)
            counted: Counter[tuple[int, int]] = Counter()
            images = [pixels(1 + seed % 3, seed) for seed in range(8)]
            files = [pb.Images(encoded=pb.EncodedImages(files=[png(image) for image in each])) for each in images]
            turn = 0
            while time.monotonic() < ends:
                calls = []
                for _ in range(AT_ONCE):
                    turn += 1
                    seed = (turn + caller) % len(images)
                    name, version = [("a", 0), ("a", 1), ("a", 0), ("other", 0)][turn % 4]
                    sent = request(name, version, len(images[seed]), seed)
                    if turn // 4 % 2:
                        sent.images.CopyFrom(files[seed])
                    calls.append((name, version, seed, stub.Classify.future(sent, timeout=60)))
                for name, version, seed, pending in calls:
                    try:
                        response = pending.result()
                    except grpc.RpcError as error:
                        # Only what was unloaded by request may be refused, and only as that.
                        assert name == "other", error  # noqa: PT017
                        assert error.details() in (  # noqa: PT017
                            "version 1 of model 'other' was unloaded",
                            "version 1 of model 'other' is being loaded: try again later",
                        )
                        with lock:
                            away[error.details()] += 1
                        continue
                    assert response.model == name
                    assert version in (0, response.version)
                    assert len(response.results) == len(images[seed])
                    made = publish.made_by(response, images[seed])
                    if name == "a":
                        counted[response.version, made] += 1
            channel.close()
            with lock:
                seen.update(counted)

        failures = []

        def guarded(caller):
            try:
                call(caller)
            except BaseException as error:
                failures.append(error)

        callers = [threading.Thread(target=guarded, args=(caller,)) for caller in range(CALLERS)]
        for thread in callers:
            thread.start()
        repository = server.state.repository
        newest = 1
        changes = 0
        while time.monotonic() < ends:
            changes += 1
            match changes % 6:
                case 1:  # A new version.
                    newest += 1
                    publish("a", newest)
                    repository.load("a")
                case 2:  # One that is broken.
                    publish("a", newest + 1, b"junk")
                    with pytest.raises(ModelNotReady):
                        repository.load("a")
                    shutil.rmtree(folder / "a" / str(newest + 1))
                case 3:  # The newest in another form.
                    publish("a", newest)
                    repository.load("a")
                case 4:  # The newest is broken in place, and what it was serves on.
                    publish("a", newest, b"junk")
                    with pytest.raises(ModelNotReady):
                        repository.load("a")
                case 5:  # A whole model goes and comes.
                    repository.unload("other")
                    repository.load("other")
                case 0:  # The newest goes, and the one before it is the default.
                    shutil.rmtree(folder / "a" / str(newest))
                    newest += 1
                    publish("a", newest)
                    repository.load("a")
            time.sleep(EVERY / 2)
        for thread in callers:
            thread.join()
        # Everybody's answers were as they should be, and the versions did change under them.
        assert not failures, failures[0]
        assert len(seen) >= 4
        assert server.metric("convlens_models_loaded") == len(repository.models)
    # Other tests' servers may run beside it.
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("engine ")] == []
