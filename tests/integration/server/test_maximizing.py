from __future__ import annotations

import io
import os
import threading
import time
import zipfile
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from convlens.v1 import convlens_pb2 as pb
from convlens_server.config import parse_config
from support import conv_model, linear_model, put, raw, serving

CHANNELS = 4


def png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 12, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    put(folder, "conv", 1, conv_model())
    put(folder, "linear", 1, linear_model())
    return folder


@pytest.fixture
def photos(tmp_path):
    """Twelve images at several depths, and what is none."""
    folder = tmp_path / "photos"
    for n in range(12):
        path = folder / ("a/b" if n % 3 else "") / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    (folder / "notes.txt").write_text("not an image")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    (folder / "a" / "empty.png").write_bytes(b"")
    (folder / ".hidden.png").write_bytes(png(99))
    return folder


def ask(server, **fields):
    """The progress messages, and {channel: images}."""
    progress, channels = [], {}
    for message in server.stub.MaximizingImages(pb.MaximizingImagesRequest(**fields), timeout=30):
        if message.WhichOneof("step") == "progress":
            assert not channels
            progress.append((message.progress.done, message.progress.total, message.progress.skipped))
        else:
            channels[message.channel.channel] = list(message.channel.images)
        assert (message.version, message.layer) == (1, fields["layer"])
    return progress, channels


def expected(server, photos, model, layer):
    """{channel: [(file, activation, row, column), …]}, by feature maps of each image alone."""
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("[0-9]*.png"))
    found = []
    for name in names:
        request = pb.GetFeatureMapsRequest(
            model=model,
            images=pb.Images(encoded=pb.EncodedImages(files=[(photos / name).read_bytes()])),
            layers=[layer],
        )
        (message,) = server.stub.GetFeatureMaps(request, timeout=30)
        values = np.frombuffer(message.data, "<f4").reshape(message.shape)[0]
        for channel, units in enumerate(values.reshape(len(values), -1)):
            row, column = divmod(int(units.argmax()), values.shape[2]) if values.ndim == 3 else (0, 0)
            found.append((channel, name, units.max(), row, column))
    return {
        channel: sorted((each[1:] for each in found if each[0] == channel), key=lambda each: (-each[1], each[0]))
        for channel in range(len(values))
    }


def same(images, wanted):
    assert [(each.file, each.row, each.column) for each in images] == [(each[0], *each[2:]) for each in wanted]
    np.testing.assert_allclose([each.activation for each in images], [each[1] for each in wanted], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["conv_2", "relu_1", "output"])
def test_each_channels_images(models, photos, layer):
    with serving(models, datasets=(("photos", photos),)) as server:
        progress, channels = ask(server, model="conv", layer=layer, dataset="photos")
        wanted = expected(server, photos, "conv", layer)
    assert list(channels) == list(wanted)
    for channel, images in channels.items():
        same(images, wanted[channel][:9])
    assert progress[0][1] == 14
    assert progress[-1] == (14, 14, 2)
    assert progress == sorted(progress)


def test_what_is_asked_for_of_them(models, photos):
    with serving(models, datasets=(("photos", photos),)) as server:
        wanted = expected(server, photos, "conv", "conv_2")
        _, channels = ask(server, model="conv", layer="conv_2", channels=[3, 1], count=16, include_images=True)
        assert list(channels) == [3, 1]
        for channel, images in channels.items():
            same(images, wanted[channel])
            assert len(images) == 12
            for each in images:
                shown = np.asarray(Image.open(io.BytesIO(each.image)))
                original = np.asarray(Image.open(photos / each.file))
                np.testing.assert_array_equal(shown, original)
                # conv_2 is behind a convolution of 3 with padding 1 and a pooling of 2.
                field = each.receptive_field
                assert (field.top, field.left) == (2 * each.row - 1, 2 * each.column - 1)
                assert (field.height, field.width) == (8, 8)
        _, one = ask(server, model="conv", layer="conv_2", channels=[0], count=1)
        assert [len(images) for images in one.values()] == [1]
        assert not one[0][0].image


def test_it_is_computed_once_and_kept_beside_the_model(models, photos):
    with serving(models, datasets=(("photos", photos),), model_control="poll", poll_seconds=0.1) as server:
        fields = {"model": "conv", "layer": "relu_2", "dataset": "photos"}
        _, first = ask(server, **fields)
        (kept,) = (models / "conv" / ".convlens").iterdir()
        assert kept.name.startswith("1-photos-relu_2-")
        made = kept.stat()
        progress, again = ask(server, **fields)
        assert progress == [(14, 14, 2)]
        assert again == first
        # The repository does not take the file for a changed version.
        before = server.state.repository.models
        for _ in range(5):
            time.sleep(0.1)
            assert server.state.repository.models == before
    # And it is there after a start.
    with serving(models, datasets=(("photos", photos),)) as server:
        progress, again = ask(server, **fields)
        assert progress == [(14, 14, 2)]
        assert again == first
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


def test_other_images_or_another_model_make_it_anew(models, photos):
    with serving(models, datasets=(("photos", photos),)) as server:
        fields = {"model": "conv", "layer": "relu_2"}
        ask(server, **fields)
        (photos / "12.png").write_bytes(png(12))
        progress, _ = ask(server, **fields)
        assert progress[-1] == (15, 15, 2)
    changed = conv_model()
    weights = next(tensor for tensor in changed.graph.initializer if tensor.name == "weights_3")
    weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) + 1).tobytes()
    put(models, "conv", 1, changed)
    with serving(models, datasets=(("photos", photos),)) as server:
        _, channels = ask(server, **fields)
        same(channels[0], expected(server, photos, "conv", "relu_2")[0][:9])
    assert len(list((models / "conv" / ".convlens").iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no zip file at all"])
def test_a_damaged_file_is_made_anew(models, photos, content):
    with serving(models, datasets=(("photos", photos),)) as server:
        fields = {"model": "conv", "layer": "relu_2"}
        _, first = ask(server, **fields)
        (kept,) = (models / "conv" / ".convlens").iterdir()
        kept.write_bytes(content)
        _, again = ask(server, **fields)
        assert again == first
        assert zipfile.is_zipfile(kept)
        assert ask(server, **fields)[0] == [(14, 14, 2)]


def test_a_model_whose_folder_cannot_be_written(models, photos, tmp_path):
    """A file stands where the folder would be made: like a read-only folder, for root as well."""
    (models / "conv" / ".convlens").write_text("in the way")
    cache = tmp_path / "cache"
    with serving(models, datasets=(("photos", photos),), model_cache=cache) as server:
        _, first = ask(server, model="conv", layer="relu_2")
        progress, again = ask(server, model="conv", layer="relu_2")
    assert progress == [(14, 14, 2)]
    assert again == first
    assert len(list(cache.rglob("*.npz"))) == 1


def test_the_samples_of_a_model(models):
    samples = models / "conv" / "1" / "samples"
    samples.mkdir()
    for n in range(3):
        (samples / f"sample_{n}.png").write_bytes(png(n))
    with serving(models) as server:
        progress, channels = ask(server, model="conv", layer="conv_1", dataset="samples", include_images=True)
        assert progress[-1] == (3, 3, 0)
        assert {each.file for each in channels[0]} == {"sample_0", "sample_1", "sample_2"}
        assert all(each.image for each in channels[0])
        # The only dataset there is.
        assert ask(server, model="conv", layer="conv_1")[1].keys() == channels.keys()


class Slow:
    """A dataset of one file, at which reading stops until the test says so."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "slow.png"
        os.mkfifo(self.path)
        self.content = png(0)

    def feed(self) -> None:
        with self.path.open("wb") as pipe:
            pipe.write(self.content)


@pytest.fixture
def slow(tmp_path):
    folder = tmp_path / "slow"
    folder.mkdir()
    return Slow(folder)


def test_two_callers_at_once_compute_once(models, slow):
    """A pipe can be read once only: who reads it a second time waits for ever."""
    with serving(models, datasets=(("slow", slow.path.parent),)) as server:
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(ask(server, model="conv", layer="relu_2"))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        first = server.stub.MaximizingImages(pb.MaximizingImagesRequest(model="conv", layer="relu_2"), timeout=30)
        assert next(first).progress.total == 1
        slow.feed()
        for thread in threads:
            thread.join(30)
        assert len(found) == 3
        assert found[0][1] == found[1][1] == found[2][1]
        assert found[0][1][0][0].file == "slow.png"
        assert [message.WhichOneof("step") for message in first][-1] == "channel"


def test_who_leaves_leaves_nothing_half(models, slow, photos):
    with serving(models, datasets=(("slow", slow.path.parent), ("photos", photos))) as server:
        call = server.stub.MaximizingImages(
            pb.MaximizingImagesRequest(model="conv", layer="relu_2", dataset="slow"), timeout=30
        )
        next(call)
        call.cancel()
        while not server.metric("convlens_requests_total", method="MaximizingImages", code="CANCELLED"):
            pass
        slow.feed()
        # The next one is done after the one that was stopped, of which nothing is kept.
        ask(server, model="conv", layer="relu_2", dataset="photos")
        (kept,) = (models / "conv" / ".convlens").iterdir()
        assert kept.name.startswith("1-photos-")


def test_a_deadline(models, slow):
    with serving(models, datasets=(("slow", slow.path.parent),)) as server:
        call = server.stub.MaximizingImages(pb.MaximizingImagesRequest(model="conv", layer="relu_2"), timeout=0.3)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        slow.feed()


@pytest.mark.parametrize(
    ("fields", "code", "reason", "text"),
    [
        ({"layer": "relu_9"}, "NOT_FOUND", "LAYER_NOT_FOUND", "relu_9"),
        ({"channels": [4]}, "NOT_FOUND", "CHANNEL_NOT_FOUND", "it has 4, counted from 0"),
        ({"channels": [1, 1]}, "INVALID_ARGUMENT", "REPEATED_CHANNEL", "repeats"),
        ({"dataset": "foto"}, "NOT_FOUND", "DATASET_NOT_FOUND", "did you mean photos?"),
        ({"dataset": "samples"}, "NOT_FOUND", "DATASET_NOT_FOUND", "'samples' is not known"),
        ({"dataset": ""}, "NOT_FOUND", "DATASET_NOT_FOUND", "there are several: photos, more"),
        ({"count": 0}, "INVALID_ARGUMENT", "COUNT_OUT_OF_RANGE", "count is 0, but must be 1 … 16"),
        ({"count": 17}, "INVALID_ARGUMENT", "COUNT_OUT_OF_RANGE", "count is 17"),
    ],
)
def test_what_is_wrong_is_named(models, photos, failing, fields, code, reason, text):
    with serving(models, datasets=(("photos", photos), ("more", photos))) as server:
        request = pb.MaximizingImagesRequest(**{"model": "conv", "layer": "relu_2", "dataset": "photos", **fields})
        failure = failing(lambda: list(server.stub.MaximizingImages(request, timeout=10)))
    assert failure.code == getattr(grpc.StatusCode, code)
    assert failure.reason == reason
    assert text in failure.text


def test_without_any_dataset(models, failing):
    with serving(models) as server:
        request = pb.MaximizingImagesRequest(model="conv", layer="relu_2")
        failure = failing(lambda: list(server.stub.MaximizingImages(request, timeout=10)))
    assert failure.reason == "DATASET_NOT_FOUND"
    assert "has no samples" in failure.text
    assert "--dataset NAME=FOLDER" in failure.text


def test_an_empty_dataset(models, tmp_path):
    (tmp_path / "empty").mkdir()
    with serving(models, datasets=(("empty", tmp_path / "empty"),)) as server:
        progress, channels = ask(server, model="conv", layer="relu_2")
    assert progress[-1] == (0, 0, 0)
    assert channels == {channel: [] for channel in range(CHANNELS)}


def test_classification_goes_on_meanwhile(models, slow):
    with serving(models, datasets=(("slow", slow.path.parent),)) as server:
        call = server.stub.MaximizingImages(pb.MaximizingImagesRequest(model="conv", layer="relu_2"), timeout=30)
        next(call)
        image = np.zeros((1, 16, 12, 3), np.uint8)
        server.stub.Classify(pb.ClassifyRequest(model="conv", images=raw(image)), timeout=10)
        server.stub.Attribute(pb.AttributeRequest(model="conv", images=raw(image)), timeout=10)
        slow.feed()
        assert [message.WhichOneof("step") for message in call][-1] == "channel"


# The flag


def test_the_flag(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    config = parse_config(["--dataset", f"birds={tmp_path / 'a'}", "--dataset", f"more.birds-2={tmp_path / 'b'}"])
    assert config.datasets == (("birds", tmp_path / "a"), ("more.birds-2", tmp_path / "b"))
    assert f"--dataset birds={tmp_path / 'a'}" in str(config)
    assert parse_config([]).datasets == ()
    monkeypatch.setenv("CONVLENS_DATASET", f"birds={tmp_path / 'b'}")
    assert parse_config([]).datasets == (("birds", tmp_path / "b"),)


@pytest.mark.parametrize("value", ["birds", "=/", "samples=/", "a/b=/", "birds=/no/such/folder", "birds="])
def test_wrong_values_of_the_flag(value, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(["--dataset", value])
    assert caught.value.code == 2
    assert "--dataset" in capsys.readouterr().err


def test_a_name_given_twice(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_config(["--dataset", f"birds={tmp_path}", "--dataset", f"birds={tmp_path}"])
    assert "given twice" in capsys.readouterr().err
