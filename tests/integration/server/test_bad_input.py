"""Each bad input has a status, a text and details of its own, and the server serves on."""

from __future__ import annotations

import io
import struct
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from convlens.v1 import convlens_pb2 as pb
from support import linear_model, pixels, put, raw

CODE = grpc.StatusCode


def png(width=8, height=8):
    buffer = io.BytesIO()
    Image.new("L", (width, height), 90).save(buffer, "PNG")
    return buffer.getvalue()


def bomb():
    """A PNG of 60,000 × 60,000 pixels that says so in its header, and has 3.6 MB of compressed zeros."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def files(*contents):
    return pb.Images(encoded=pb.EncodedImages(files=contents))


def sized(content, height=8, width=8, channels=1):
    return pb.Images(raw=pb.RawImages(pixels=content, height=height, width=width, channels=channels))


GOOD = raw(pixels(1))
REQUESTS = {
    "not an image": (
        {"images": files(b"hello, this is text")},
        (CODE.INVALID_ARGUMENT, "NOT_AN_IMAGE", "images", "image 0 is not a JPEG, PNG or WebP file"),
    ),
    "a GIF": (
        {"images": files(b"GIF89a" + bytes(40))},
        (CODE.INVALID_ARGUMENT, "NOT_AN_IMAGE", "images", "image 0 is not a JPEG, PNG or WebP file"),
    ),
    "an empty file": (
        {"images": files(png(), b"")},
        (CODE.INVALID_ARGUMENT, "EMPTY_IMAGE", "images", "image 1 is empty"),
    ),
    "a truncated image": (
        {"images": files(png(), png(100, 100)[:60])},
        (CODE.INVALID_ARGUMENT, "UNDECODABLE_IMAGE", "images", "image 1 is a PNG file that cannot be decoded"),
    ),
    "a decompression bomb": (
        {"images": files(bomb())},
        (CODE.INVALID_ARGUMENT, "TOO_MANY_PIXELS", "images", "has 60000 × 60000 pixels, over the limit of 50000000"),
    ),
    "no images": (
        {"images": pb.Images()},
        (CODE.INVALID_ARGUMENT, "NO_IMAGES", "images", "the request has no images: send at least one"),
    ),
    "no files": (
        {"images": files()},
        (CODE.INVALID_ARGUMENT, "NO_IMAGES", "images", "the request has no images: send at least one"),
    ),
    "no pixels": (
        {"images": sized(b"")},
        (CODE.INVALID_ARGUMENT, "NO_IMAGES", "images", "the request has no images: send at least one"),
    ),
    "too many images": (
        {"images": raw(pixels(257))},
        (CODE.INVALID_ARGUMENT, "TOO_MANY_IMAGES", "images", "257 images, over the limit of 256"),
    ),
    "raw pixels of another size": (
        {"images": sized(bytes(81), 9, 9)},
        (CODE.INVALID_ARGUMENT, "WRONG_SIZE", "images.raw", "raw images are 9 × 9 pixels, but the model takes 8 × 8"),
    ),
    "raw pixels with other channels": (
        {"images": sized(bytes(192), 8, 8, 3)},
        (CODE.INVALID_ARGUMENT, "WRONG_CHANNELS", "images.raw.channels", "3 channels, but the model takes 1"),
    ),
    "raw pixels that are no whole images": (
        {"images": sized(bytes(100))},
        (CODE.INVALID_ARGUMENT, "WRONG_PIXEL_BYTES", "images.raw.pixels", "100 bytes, which is not a multiple of 64"),
    ),
    "an unknown model": (
        {"images": GOOD, "model": "liner"},
        (CODE.NOT_FOUND, "MODEL_NOT_FOUND", "model", "model 'liner' is not in the repository (did you mean linear?)"),
    ),
    "no model": (
        {"images": GOOD, "model": ""},
        (CODE.INVALID_ARGUMENT, "NO_MODEL", "model", "names no model, and the server has several: broken, conv, lin"),
    ),
    "an unknown version": (
        {"images": GOOD, "version": 7},
        (CODE.NOT_FOUND, "VERSION_NOT_FOUND", "version", "model 'linear' has no version 7 (there are 1, 2)"),
    ),
    "a negative version": (
        {"images": GOOD, "version": -1},
        (CODE.INVALID_ARGUMENT, "VERSION_OUT_OF_RANGE", "version", "version is -1, but must be positive"),
    ),
    "a version that failed to load": (
        {"images": GOOD, "model": "broken"},
        (CODE.FAILED_PRECONDITION, "MODEL_NOT_READY", "model", "version 1 of model 'broken' could not be loaded: "),
    ),
    "top_k of 0": (
        {"images": GOOD, "top_k": 0},
        (CODE.INVALID_ARGUMENT, "TOP_K_OUT_OF_RANGE", "top_k", "top_k is 0, but must be 1 … 16"),
    ),
    "top_k over the classes": (
        {"images": GOOD, "top_k": 17},
        (CODE.INVALID_ARGUMENT, "TOP_K_OUT_OF_RANGE", "top_k", "top_k is 17, but must be 1 … 16"),
    ),
}


def still_serves(server):
    response = server.stub.Classify(pb.ClassifyRequest(model="linear", images=GOOD), timeout=10)
    assert len(response.results) == 1


@pytest.mark.parametrize("case", REQUESTS)
def test_classify(server, failing, case):
    fields, (code, reason, field, text) = REQUESTS[case]
    request = pb.ClassifyRequest(**{"model": "linear", **fields})
    model = request.model if request.model == "linear" and request.version in (0, 1, 2) else ""
    before = server.metric("convlens_requests_total", model=model, method="Classify", code=code.name)

    failure = failing(lambda: server.stub.Classify(request, timeout=10))

    assert (failure.code, failure.reason, failure.field) == (code, reason, field)
    assert text in failure.text
    assert server.metric("convlens_requests_total", model=model, method="Classify", code=code.name) == before + 1
    still_serves(server)


LAYERS = {
    "no layers": ({}, (CODE.INVALID_ARGUMENT, "NO_LAYERS", "layers", "no layers are asked for")),
    "an unknown layer": (
        {"layers": ["relu_1", "conv1"]},
        (CODE.NOT_FOUND, "LAYER_NOT_FOUND", "layers", "'conv1' is not in the model (did you mean conv_1, conv_2"),
    ),
    "an unknown kind": (
        {"kinds": ["maxpool"]},
        (CODE.NOT_FOUND, "LAYER_NOT_FOUND", "kinds", "'maxpool' is not in the model (did you mean max_pool"),
    ),
    "a channel too high": (
        {"layers": ["conv_1", "conv_2"], "channels": [1, 5]},
        (CODE.NOT_FOUND, "CHANNEL_NOT_FOUND", "channels", "layer 'conv_2' has no channel 5: it has 4"),
    ),
    "a channel twice": (
        {"layers": ["conv_1"], "channels": [1, 2, 1]},
        (CODE.INVALID_ARGUMENT, "REPEATED_CHANNEL", "channels", "channels has repeats: [1, 2, 1]"),
    ),
    "an unknown value type": (
        {"layers": ["conv_1"], "value_type": 9},
        (CODE.INVALID_ARGUMENT, "UNKNOWN_VALUE_TYPE", "value_type", "value_type is 9, but must be one of VALUE_TYPE_F"),
    ),
    "too many images": (
        {"layers": ["conv_1"], "images": raw(np.zeros((17, 16, 12, 3), np.uint8))},
        (CODE.INVALID_ARGUMENT, "TOO_MANY_IMAGES", "images", "17 images, over the limit of 16"),
    ),
    "an unknown model": (
        {"layers": ["conv_1"], "model": "con"},
        (CODE.NOT_FOUND, "MODEL_NOT_FOUND", "model", "(did you mean conv?)"),
    ),
    "not an image": (
        {"layers": ["conv_1"], "images": files(b"text")},
        (CODE.INVALID_ARGUMENT, "NOT_AN_IMAGE", "images", "image 0 is not a JPEG, PNG or WebP file"),
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_feature_maps(server, failing, case):
    fields, (code, reason, field, text) = LAYERS[case]
    good = {"model": "conv", "images": raw(np.zeros((1, 16, 12, 3), np.uint8))}
    request = pb.GetFeatureMapsRequest(**{**good, **fields})

    failure = failing(lambda: list(server.stub.GetFeatureMaps(request, timeout=10)))

    assert (failure.code, failure.reason, failure.field) == (code, reason, field)
    assert text in failure.text
    still_serves(server)


def test_more_feature_maps_than_allowed(serve, models, failing):
    with serve(models, max_feature_map_bytes=9_000) as server:
        request = pb.GetFeatureMapsRequest(
            model="conv", images=raw(np.zeros((2, 16, 12, 3), np.uint8)), layers=["conv_1", "conv_2"]
        )
        failure = failing(lambda: list(server.stub.GetFeatureMaps(request, timeout=10)))
        size = 2 * 4 * (6 * 16 * 12 + 4 * 6 * 4)
        assert failure.reason == "TOO_MANY_BYTES"
        assert f"have {size} bytes as float32, over the limit of 9000" in failure.text
        still_serves(server)


def test_get_an_unknown_model(server, failing):
    failure = failing(lambda: server.stub.GetModel(pb.GetModelRequest(model="lin"), timeout=10))

    assert (failure.code, failure.reason) == (CODE.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("method", ["Classify", "GetModel", "ListModels", "GetFeatureMaps", "ClassifyStream"])
def test_bytes_that_are_no_message(server, failing, method):
    path = f"/convlens.v1.ConvLens/{method}"
    junk = b"\xff\xff\xff\xff"
    if method == "ClassifyStream":
        call = server.channel.stream_stream(path)
        failure = failing(lambda: list(call(iter([junk]), timeout=10)))
    elif method == "GetFeatureMaps":
        failure = failing(lambda: list(server.channel.unary_stream(path)(junk, timeout=10)))
    else:
        failure = failing(lambda: server.channel.unary_unary(path)(junk, timeout=10))

    assert (failure.code, failure.reason) == (CODE.INVALID_ARGUMENT, "NOT_A_MESSAGE")
    still_serves(server)


def test_a_message_over_the_limit(serve, models, failing):
    with serve(models, max_message_bytes=10_000) as server:
        request = pb.ClassifyRequest(model="linear", images=raw(pixels(200)))
        failure = failing(lambda: server.stub.Classify(request, timeout=10))
        assert (failure.code, failure.reason) == (CODE.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        assert "over the limit of 10000" in failure.text
        assert "--max-message-bytes" in failure.text
        assert failure.retry_seconds is None
        still_serves(server)


def test_an_unknown_method(server, failing):
    failure = failing(lambda: server.channel.unary_unary("/convlens.v1.ConvLens/Train")(b"", timeout=10))

    assert (failure.code, failure.reason) == (CODE.UNIMPLEMENTED, "METHOD_NOT_FOUND")


def test_a_bad_image_fails_its_own_request_alone(server, failing):
    good, bad = files(png()), files(b"bad")
    requests = [pb.ClassifyRequest(model="linear", images=bad if n % 5 == 2 else good) for n in range(200)]

    futures = [server.stub.Classify.future(request, timeout=30) for request in requests]

    for n, future in enumerate(futures):
        if n % 5 == 2:
            assert failing(future.result).reason == "NOT_AN_IMAGE"
        else:
            assert len(future.result().results) == 1


class TestModelFiles:
    """Files that cannot be served are listed with the reason; the others are served."""

    def state(self, serve, tmp_path, content, manifest=None):
        path = put(tmp_path, "bad", 1, content)
        if manifest is not None:
            path.with_name("manifest.json").write_text(manifest)
        put(tmp_path, "linear", 1, linear_model())
        with serve(tmp_path) as server:
            still_serves(server)
            [bad, good] = server.stub.ListModels(pb.ListModelsRequest(), timeout=10).models
            assert str(tmp_path) not in bad.error
            assert (bad.state, good.state) == (pb.MODEL_STATE_FAILED, pb.MODEL_STATE_READY)
            return bad.error

    def test_corrupt(self, serve, tmp_path):
        content = linear_model().SerializeToString()
        assert "not an ONNX model, or a damaged one" in self.state(serve, tmp_path, content[: len(content) // 2])

    def test_not_an_image_classifier(self, serve, tmp_path):
        model = linear_model()
        del model.graph.input[0].type.tensor_type.shape.dim[0]
        assert "an image classifier's has four dimensions" in self.state(serve, tmp_path, model)

    def test_external_data_outside_its_folder(self, serve, tmp_path):
        model = linear_model()
        weights = model.graph.initializer[0]
        weights.ClearField("raw_data")
        weights.data_location = 1
        weights.external_data.add(key="location", value="../../../secret.bin")
        error = self.state(serve, tmp_path, model)
        assert "external data '../../../secret.bin' is outside the model's folder" in error

    def test_wrong_manifest(self, serve, tmp_path):
        error = self.state(serve, tmp_path, linear_model(), '{"labels": ["only one"], "input": {}}')
        assert "manifest.json is wrong" in error

    def test_no_file(self, serve, tmp_path):
        (tmp_path / "bad" / "2").mkdir(parents=True)
        put(tmp_path, "linear", 1, linear_model())
        with serve(tmp_path) as server:
            [bad, _] = server.stub.ListModels(pb.ListModelsRequest(), timeout=10).models
            assert "a version's folder must hold model.onnx" in bad.error
