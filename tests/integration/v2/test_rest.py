from __future__ import annotations

import gzip
import io
import json
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from integration.v2.asking import Asked, normalised
from support import pixels, serving

HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="session")
def http(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server.state.http_port}", timeout=20) as client:
        yield client


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def given(images, **changes):
    """A request's JSON with one input as lists."""
    data = {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": images.tolist()}
    return {"inputs": [{**data, **changes}]}


def binary(document, *tensors):
    text = json.dumps(document).encode()
    return {"content": b"".join((text, *tensors)), "headers": {HEADER: str(len(text))}}


def parsed(response):
    """An answer's JSON, and its outputs as arrays, from lists or binary data."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(HEADER, len(response.content)))
    document = json.loads(response.content[:length])
    position = length
    arrays = {}
    for output in document["outputs"]:
        dtype = {"FP32": "<f4", "FP16": "<f2"}[output["datatype"]]
        if "data" in output:
            values = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(response.content[position : position + size], dtype)
            position += size
        arrays[output["name"]] = values.reshape(output["shape"])
    assert position == len(response.content)
    return document, arrays


@pytest.mark.parametrize("flat", [False, True])
def test_json(server, http, flat):
    images = pixels(3)
    scores, logits = server.classify("native", images)
    request = given(images, **({"data": images.ravel().tolist()} if flat else {}))
    request |= {"id": "an id", "outputs": [{"name": "scores"}, {"name": "logits"}]}

    document, arrays = parsed(http.post("/v2/models/native/infer", json=request))

    assert (document["model_name"], document["model_version"], document["id"]) == ("native", "3", "an id")
    np.testing.assert_array_equal(arrays["scores"], scores)
    np.testing.assert_array_equal(arrays["logits"], logits)


@pytest.mark.parametrize("parameters", [{"binary_data_output": True}, {}])
def test_binary_data(server, http, parameters):
    images = pixels(2)
    _, logits = server.classify("linear", images)
    floats = normalised(images)
    request = {
        "parameters": parameters,
        "inputs": [
            {
                "name": "x",
                "shape": list(floats.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": floats.nbytes},
            }
        ],
        "outputs": [{"name": "y"}, {"name": "output", "parameters": {"binary_data": True}}],
    }

    response = http.post("/v2/models/linear/versions/1/infer", **binary(request, floats.tobytes()))

    document, arrays = parsed(response)
    assert document["model_version"] == "1"
    assert ("data" in document["outputs"][0]) == (not parameters)
    assert "data" not in document["outputs"][1]
    np.testing.assert_array_equal(arrays["y"], logits)
    np.testing.assert_array_equal(arrays["output"], server.maps("linear", images, "output")["output"])


@pytest.mark.parametrize("content", ["tensor", "file"])
def test_a_body_that_is_the_input(server, http, content):
    images = pixels(1)
    body = images.tobytes() if content == "tensor" else png(images[0])

    document, arrays = parsed(http.post("/v2/models/native/infer", content=body, headers={HEADER: "0"}))

    assert "data" not in document["outputs"][0]
    np.testing.assert_array_equal(arrays["scores"], server.classify("native", images)[0])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression(server, http, encoding):
    images = pixels(30)
    body = json.dumps(given(images)).encode()
    body = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}

    response = http.post("/v2/models/native/infer", content=body, headers=headers)

    assert response.headers["content-encoding"] == encoding
    np.testing.assert_array_equal(parsed(response)[1]["scores"], server.classify("native", images)[0])


def test_classification(server, http):
    images = pixels(1)
    request = given(images) | {"outputs": [{"name": "scores", "parameters": {"classification": 2}}]}

    [output] = http.post("/v2/models/native/infer", json=request).json()["outputs"]

    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    best = int(server.classify("native", images)[0].argmax())
    assert output["data"][0].split(":")[1:] == [str(best), f"class_{best}"]


def test_descriptions(http):
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    metadata = http.get("/v2").json()
    assert metadata["name"] == "convlens"
    assert {"binary_tensor_data", "statistics", "system_shared_memory"} <= set(metadata["extensions"])
    model = http.get("/v2/models/native").json()
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}]
    assert model["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 16]}]
    assert json.loads(model["properties"]["convlens.layers"])[0]["name"] == "normalise"
    assert http.get("/v2/models/native/ready").json() == {"name": "native", "ready": True}
    assert http.get("/v2/models/broken/ready").status_code == 503
    config = http.get("/v2/models/native/versions/3/config").json()
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (64, [8, 8, 1])
    assert config["input"][0]["format"] == "FORMAT_NHWC"
    http.post("/v2/models/native/infer", json=given(pixels(1)))
    [statistics] = http.get("/v2/models/native/stats").json()["model_stats"]
    assert isinstance(statistics["inference_count"], int)
    assert isinstance(statistics["inference_stats"]["queue"]["ns"], int)
    assert len(http.get("/v2/models/stats").json()["model_stats"]) > 3
    index = http.post("/v2/repository/index", json={"ready": True}).json()
    assert {"name": "native", "version": "3", "state": "READY", "reason": ""} in index
    assert len(http.post("/v2/repository/index").json()) == len(index) + 1


ERRORS = {
    "unknown model": ("none", given(pixels(1)), {}, 404, "Request for unknown model: 'none' is not found"),
    "unknown version": (
        "native/versions/7", given(pixels(1)), {}, 404, "Request for unknown model: 'native' version 7 is not found",
    ),
    "no version": (
        "native/versions/x", given(pixels(1)), {}, 400, "failed to get model version from specified version string",
    ),
    "failed": ("broken", given(pixels(1)), {}, 503, "is not at ready state"),
    "shape": ("native", given(pixels(1), shape=[1, 4]), {}, 400, "unexpected shape for input 'image'"),
    "datatype": ("native", given(pixels(1), datatype="FP32"), {}, 400, "inference input 'image' data-type is 'FP32'"),
    "unknown datatype": ("native", given(pixels(1), datatype="X"), {}, 400, "inference input 'image' data-type is 'X'"),
    "missing data": ("native", given(pixels(1), data=[]), {}, 400, "input byte size mismatch"),
    "ragged data": ("native", given(pixels(1), data=[[1], [1, 2]]), {}, 400, "in a list or lists of one length"),
    "texts": ("native", given(pixels(1), data=["a"] * 64), {}, 400, "must be whole numbers"),
    "floats": ("native", given(pixels(1), data=[0.5] * 64), {}, 400, "must be whole numbers"),
    "256": ("native", given(pixels(1), data=[256] * 64), {}, 400, "is not within 0 … 255"),
    "a huge number": ("native", given(pixels(1), data=[2**70] * 64), {}, 400, "must be whole numbers"),
    "no inputs": ("native", {}, {}, 400, "has no 'inputs'"),
    "inputs": ("native", {"inputs": {}}, {}, 400, "'inputs' is a JSON dict, but must be a list"),
    "an input": ("native", {"inputs": [1]}, {}, 400, "inputs must be a list of objects"),
    "parameter": ("native", given(pixels(1)) | {"parameters": {"a": []}}, {}, 400, "must be a truth value, a number"),
    "negative timeout": (
        "native", given(pixels(1)) | {"parameters": {"timeout": -1}}, {}, 400, "'timeout' is -1, but must be 0 or more",
    ),
    "header": ("native", given(pixels(1)), {HEADER: "x"}, 400, "must be a number of bytes"),
    "negative header": ("native", given(pixels(1)), {HEADER: "-1"}, 400, "must be a number of bytes"),
    "header over the body": ("native", given(pixels(1)), {HEADER: "99999"}, 400, "but the body has"),
    "header into the JSON": ("native", given(pixels(1)), {HEADER: "9"}, 400, "failed to parse the request JSON"),
    "binary size over the body": (
        "native", given(pixels(1), parameters={"binary_data_size": 99}, data=None), {}, 400, "has both data and",
    ),
    "surrogates": ("native", b'{"id": "\\ud800", "inputs": []}', {}, 400, "cannot be read"),
    "no JSON": ("native", b"{", {}, 400, "failed to parse the request JSON buffer"),
    "no object": ("native", b"[]", {}, 400, "the request is a JSON list"),
    "deep": ("native", b"[" * 100_000, {}, 400, "failed to parse the request JSON buffer"),
    "no gzip": ("native", b"{}", {"Content-Encoding": "gzip"}, 400, "the body is not gzip, or not all of it"),
    "half of gzip": (
        "native", gzip.compress(bytes(1000))[:-9], {"Content-Encoding": "gzip"}, 400, "the body is not gzip",
    ),
    "brotli": ("native", b"{}", {"Content-Encoding": "br"}, 400, "must be gzip or deflate"),
    "a bomb": ("native", gzip.compress(bytes(2**25)), {"Content-Encoding": "gzip"}, 413, "over the limit"),
    "too large": ("native", bytes(2**24 + 1), {}, 413, "over the limit"),
    "empty body as input": ("native", b"", {HEADER: "0"}, 400, "input byte size mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(http, name):
    path, body, headers, code, text = ERRORS[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    response = http.post(f"/v2/models/{path}/infer", content=content, headers=headers)

    assert response.status_code == code
    assert text in response.json()["error"]


@pytest.mark.parametrize(
    ("size", "behind", "text"),
    [
        (65, 64, "is 65, but 64 bytes are left in the body"),
        (64, 65, "the body has 1 bytes behind its JSON"),
        (63, 63, "input byte size mismatch"),
        (-1, 64, "must be a number of bytes"),
        (True, 64, "must be a number of bytes"),
        ("64", 64, "must be a number of bytes"),
        (2**70, 64, "but 64 bytes are left in the body"),
    ],
)
def test_binary_sizes_that_lie(http, size, behind, text):
    request = given(pixels(1), parameters={"binary_data_size": size})
    del request["inputs"][0]["data"]

    response = http.post("/v2/models/native/infer", **binary(request, bytes(behind)))

    assert response.status_code == 400
    assert text in response.json()["error"]


def test_fields_that_are_unknown_are_passed_over(http):
    request = given(pixels(1), mine=1) | {"model_name": "other", "outputs": [{"name": "scores", "mine": 1}]}

    assert http.post("/v2/models/native/infer", json=request).status_code == 200


def test_models_that_are_fixed(http):
    for change in ("load", "unload"):
        response = http.post(f"/v2/repository/models/native/{change}")
        assert response.status_code == 400
        assert "explicit" in response.json()["error"]


def test_a_full_server_says_when_to_come_back(models):
    with serving(models, max_queue=1) as server:
        server.__class__ = Asked
        url = f"http://127.0.0.1:{server.state.http_port}/v2/models/native/infer"
        response = httpx.post(url, json=given(pixels(2)), timeout=20)

    assert response.status_code == 429
    assert "Exceeds maximum queue size" in response.json()["error"]
    assert response.headers["retry-after"]
