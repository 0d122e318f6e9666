"""Models that come and go by the protocol's own methods."""

from __future__ import annotations

import grpc
import httpx
import pytest

from convlens_server.v2 import service_pb2 as pb
from integration.v2.asking import Asked, normalised, tensor
from support import TRANSPORTS, linear_model, pixels, put, serving


@pytest.fixture(params=TRANSPORTS)
def explicit(request, tmp_path):
    """A server whose models are loaded by request, and its repository."""
    put(tmp_path, "linear", 1, linear_model())
    with serving(tmp_path, transport=request.param, model_control="explicit") as server:
        server.__class__ = Asked
        yield server, tmp_path


def states(server):
    models = server.ask("RepositoryIndex", pb.RepositoryIndexRequest()).models
    return {(model.name, model.version): model.state for model in models}


def infer(server, model="linear", version=""):
    return server.infer(model_name=model, model_version=version, **tensor("x", normalised(pixels(1)))).model_version


def load(server, name):
    return server.ask("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name))


def test_load_and_unload(explicit, failing):
    server, folder = explicit
    put(folder, "linear", 2, linear_model())
    put(folder, "later", 7, linear_model())
    assert infer(server) == "1"
    load(server, "linear")
    load(server, "later")
    assert infer(server) == "2"
    assert infer(server, "linear", "1") == "1"
    assert infer(server, "later") == "7"

    server.ask("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="later"))
    assert states(server)["later", "7"] == "UNAVAILABLE"
    assert not server.ask("ModelReady", pb.ModelReadyRequest(name="later")).ready
    failure = failing(lambda: infer(server, "later"))
    assert failure.code == grpc.StatusCode.UNAVAILABLE
    assert "is not at ready state" in failure.text
    load(server, "later")
    assert infer(server, "later") == "7"


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (None, {"all": {}}),
        ("max_batch_size: 4", {"latest": {"num_versions": 1}}),
        ("version_policy { specific { versions: [1] } }", {"specific": {"versions": [1]}}),
    ],
)
def test_the_configuration_has_the_policy(explicit, text, policy):
    server, folder = explicit
    if text is not None:
        (folder / "linear" / "config.pbtxt").write_text(text)
        load(server, "linear")
    config = httpx.get(f"http://127.0.0.1:{server.state.http_port}/v2/models/linear/config", timeout=30).json()
    assert config["version_policy"] == policy


def test_a_broken_version_leaves_the_old_one(explicit, failing):
    server, folder = explicit
    put(folder, "linear", 2, b"broken")
    failure = failing(lambda: load(server, "linear"))

    assert failure.code == grpc.StatusCode.UNAVAILABLE
    assert failure.text.startswith(
        "failed to load 'linear': model 'linear' could not be loaded: version 2: not an ONNX"
    )
    assert infer(server) == "1"
    assert states(server)["linear", "1"] == "READY"
    [reason] = [
        model.reason
        for model in server.ask("RepositoryIndex", pb.RepositoryIndexRequest()).models
        if model.version == "2"
    ]
    assert "not an ONNX model" in reason


@pytest.mark.parametrize("name", ["none", "../linear", "a/b", ""])
def test_models_that_are_not_there(explicit, failing, name):
    server, _ = explicit
    failure = failing(lambda: load(server, name))

    assert failure.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
    assert infer(server) == "1"


def test_parameters_and_other_repositories_are_refused(explicit, failing):
    server, _ = explicit
    for fields in (
        {"repository_name": "other"},
        {"parameters": {"config": pb.ModelRepositoryParameter(string_param="{}")}},
        {"parameters": {"file:1/model.onnx": pb.ModelRepositoryParameter(bytes_param=b"")}},
    ):
        request = pb.RepositoryModelLoadRequest(model_name="linear", **fields)
        assert failing(lambda: server.ask("RepositoryModelLoad", request)).code == grpc.StatusCode.INVALID_ARGUMENT  # noqa: B023
    parameters = {"unload_dependents": pb.ModelRepositoryParameter(bool_param=True)}
    server.ask("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="linear", parameters=parameters))


def test_over_rest(explicit):
    server, folder = explicit
    put(folder, "later", 7, linear_model())
    with httpx.Client(base_url=f"http://127.0.0.1:{server.state.http_port}/v2", timeout=20) as http:
        assert http.post("/repository/models/later/load").status_code == 200
        assert http.get("/models/later/ready").status_code == 200
        assert http.post("/repository/models/later/unload").status_code == 200
        assert http.get("/models/later/ready").status_code == 503
        response = http.post("/repository/models/none/load")
        assert response.status_code == 404
        assert "none" in response.json()["error"]
        assert http.post("/repository/models/later/load", json={"parameters": {"config": "{}"}}).status_code == 400
