"""Our own service over HTTP: Connect, as JSON and binary, and gRPC-Web."""

from __future__ import annotations

import base64
import json
import struct

import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2

from convlens.v1 import convlens_pb2 as pb
from support import pixels, raw

END = 2  # The flag of Connect's last envelope.
TRAILERS = 128  # The flag of gRPC-Web's.


@pytest.fixture(scope="session")
def http(server):
    with httpx.Client(
        base_url=f"http://127.0.0.1:{server.state.http_port}/convlens.v1.ConvLens/", timeout=20
    ) as client:
        yield client


def envelope(data):
    return b"\0" + struct.pack(">I", len(data)) + data


def envelopes(content):
    while content:
        size = struct.unpack(">I", content[1:5])[0]
        yield content[0], content[5 : 5 + size]
        content = content[5 + size :]


def request(images, **fields):
    return pb.ClassifyRequest(model="linear", images=raw(images), include_logits=True, **fields)


def same(response, expected):
    """Equal but for the times."""
    for each in (response, expected):
        each.ClearField("queue_ms")
        each.ClearField("compute_ms")
    assert response == expected


@pytest.mark.parametrize("kind", ["json", "proto"])
def test_unary(server, http, kind):
    message = request(pixels(3))
    body = message.SerializeToString() if kind == "proto" else json_format.MessageToJson(message)

    response = http.post("Classify", content=body, headers={"Content-Type": f"application/{kind}"})

    assert response.status_code == 200
    answer = pb.ClassifyResponse()
    if kind == "proto":
        answer.MergeFromString(response.content)
    else:
        json_format.Parse(response.text, answer)
    same(answer, server.stub.Classify(message, timeout=10))


def test_get(http, server):
    query = {"connect": "v1", "encoding": "json", "message": '{"model": "conv"}'}
    answer = json_format.Parse(http.get("GetModel", params=query).text, pb.GetModelResponse())

    assert answer == server.stub.GetModel(pb.GetModelRequest(model="conv"), timeout=10)


@pytest.mark.parametrize("kind", ["json", "proto"])
def test_server_stream(server, http, kind):
    message = pb.GetFeatureMapsRequest(model="linear", images=raw(pixels(2)), layers=["output", "flatten"])
    body = message.SerializeToString() if kind == "proto" else json_format.MessageToJson(message).encode()
    response = http.post(
        "GetFeatureMaps", content=envelope(body), headers={"Content-Type": f"application/connect+{kind}"}
    )

    *answers, (flag, end) = envelopes(response.content)
    assert (flag, json.loads(end)) == (END, {})
    expected = list(server.stub.GetFeatureMaps(message, timeout=10))
    assert len(answers) == len(expected) == 2
    for (_, data), wanted in zip(answers, expected, strict=True):
        answer = pb.GetFeatureMapsResponse()
        if kind == "proto":
            answer.MergeFromString(data)
        else:
            json_format.Parse(data, answer)
        same(answer, wanted)


def test_bidirectional_stream(http):
    images = pixels(40)
    sent = [
        pb.ClassifyStreamRequest(id=n, request=request(images[n : n + 1], top_k=99 if n == 7 else 1)) for n in range(40)
    ]
    body = b"".join(envelope(each.SerializeToString()) for each in sent)
    response = http.post("ClassifyStream", content=body, headers={"Content-Type": "application/connect+proto"})

    *answers, (flag, end) = envelopes(response.content)
    assert (flag, json.loads(end)) == (END, {})
    by_id = {answer.id: answer for answer in (pb.ClassifyStreamResponse.FromString(data) for _, data in answers)}
    assert sorted(by_id) == list(range(40))
    assert "top_k is 99" in by_id[7].error.message
    assert by_id[8].response.results


def test_grpc_web(server, http):
    message = request(pixels(1))
    headers = {"Content-Type": "application/grpc-web+proto"}
    response = http.post("Classify", content=envelope(message.SerializeToString()), headers=headers)

    (_, data), (flag, trailers) = envelopes(response.content)
    assert flag == TRAILERS
    assert b"grpc-status: 0" in trailers
    same(pb.ClassifyResponse.FromString(data), server.stub.Classify(message, timeout=10))
    response = http.post("GetModel", content=envelope(b"\x0a\x04none"), headers=headers)
    assert b"grpc-status: 5" in response.content


ERRORS = [
    ("Classify", {"model": "none"}, 404, "not_found", "MODEL_NOT_FOUND"),
    ("Classify", {"model": "linear"}, 400, "invalid_argument", "NO_IMAGES"),
    ("Classify", {"model": "broken"}, 400, "failed_precondition", "MODEL_NOT_READY"),
    ("GetModel", {"model": "linear", "version": 9}, 404, "not_found", "VERSION_NOT_FOUND"),
]


@pytest.mark.parametrize(("method", "body", "status", "code", "reason"), ERRORS)
def test_errors_are_those_of_grpc(http, method, body, status, code, reason):
    response = http.post(method, json=body)

    assert response.status_code == status
    error = response.json()
    assert error["code"] == code
    info = error_details_pb2.ErrorInfo()
    detail = error["details"][0]
    assert detail["type"] == "google.rpc.ErrorInfo"
    info.MergeFromString(base64.b64decode(detail["value"] + "=="))
    assert (info.reason, info.domain) == (reason, "convlens")


def test_an_error_of_a_stream(http):
    body = envelope(json.dumps({"model": "linear", "layers": ["none"]}).encode())
    response = http.post("GetFeatureMaps", content=body, headers={"Content-Type": "application/connect+json"})

    [(flag, end)] = envelopes(response.content)
    assert flag == END
    assert json.loads(end)["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "content", "kind", "status"),
    [
        ("Classify", b"{", "application/json", 400),
        ("Classify", b"\xff\xff", "application/proto", 400),
        ("Nothing", b"{}", "application/json", 404),
        ("Classify", b"{}", "text/plain", 415),
    ],
)
def test_bad_requests(http, method, content, kind, status):
    assert http.post(method, content=content, headers={"Content-Type": kind}).status_code == status


@pytest.mark.parametrize("content", [b"", b"\0\0\0", envelope(b"{"), envelope(b"{}")[:-1], envelope(b"{}") * 2])
def test_bad_envelopes(http, content):
    for method in ("GetFeatureMaps", "ClassifyStream"):
        response = http.post(method, content=content, headers={"Content-Type": "application/connect+json"})
        assert response.status_code == 200
        *_, (flag, end) = envelopes(response.content)
        assert flag == END
        if content and not (method == "ClassifyStream" and content == envelope(b"{}") * 2):
            assert json.loads(end)["error"]["code"] in ("invalid_argument", "unimplemented")


def test_layers_as_arrays(http):
    """What curl gets is what numpy reads."""
    body = {"model": "linear", "images": json_format.MessageToDict(raw(pixels(1))), "layers": ["flatten"]}
    response = http.post(
        "GetFeatureMaps",
        content=envelope(json.dumps(body).encode()),
        headers={"Content-Type": "application/connect+json"},
    )
    first = json.loads(next(envelopes(response.content))[1])
    values = np.frombuffer(base64.b64decode(first["data"]), "<f4").reshape(first["shape"])
    np.testing.assert_allclose(values[0], pixels(1).ravel() / 255, rtol=1e-6)
