"""Requests made up from the OpenAPI description: nothing fails, and every answer is one that it describes."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi import from_url
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support import conv_model, linear_model, put, serving

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Their requests may be as the description says and yet not be what this model takes, or what the machine has.
CHOOSY = {"infer", "inferVersion", "registerSharedMemory"}
# It is there, but cannot be loaded: 503 is what is described, and only for it.
BROKEN = "broken"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    put(folder, "lecture_cnn", 1, linear_model())
    put(folder, "conv", 1, conv_model())
    # Comes and goes, and gets aliases.
    put(folder, "spare", 1, linear_model())
    put(folder, BROKEN, 1, b"not an ONNX file")
    with serving(folder, allow_shared_memory=True, model_control="explicit") as server:
        yield f"http://127.0.0.1:{server.state.http_port}"


@pytest.fixture(scope="module")
def description(server):
    return from_url(f"{server}/openapi.json")


def described():
    from importlib.resources import files
    from json import loads

    paths = loads(files("convlens_server.v2").joinpath("openapi.json").read_text())["paths"]
    return {path: {method.upper() for method in operations} for path, operations in paths.items()}


OPERATIONS = [f"{method} {path}" for path, methods in described().items() for method in sorted(methods)]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation(description, label, mode):
    [operation] = [
        each.ok()
        for each in description.get_all_operations()
        if f"{each.ok().method.upper()} {each.ok().path}" == label
    ]
    good = mode is GenerationMode.POSITIVE
    names = {parameter.name for parameter in operation.iter_parameters()}
    if not good and names <= {"region"} and not operation.body:
        return  # Nothing of it can be wrong; a region may have any name.
    models = (
        ["spare"] if label.startswith(("POST /v2/repository", "DELETE /v2/repository")) else ["conv", "lecture_cnn"]
    )

    @given(operation.as_strategy(generation_mode=mode), st.sampled_from([None, *models, BROKEN]), st.booleans())
    @settings(max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case, model, first):
        if model is not None and "model" in case.path_parameters:
            case.path_parameters["model"] = model
        if first and "version" in case.path_parameters:
            case.path_parameters["version"] = "1"
        broken = model == BROKEN and "model" in case.path_parameters
        checks = [*CHECKS]
        if not broken:
            checks.append(not_a_server_error)
            if not good:
                checks.append(negative_data_rejection)
            # A version that is no number may be an alias: only the model knows whether it is one.
            elif operation.definition.raw["operationId"] not in CHOOSY and (first or "version" not in label):
                checks.append(positive_data_acceptance)
        case.call_and_validate(checks=checks)

    check()


@pytest.mark.parametrize("path", described())
def test_methods_that_a_path_does_not_have(server, path):
    known = described()[path]
    known |= {"HEAD"} if "GET" in known else set()
    url = server + path.format(model="conv", version="1", region="r", alias="stable")
    with httpx.Client() as http:
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "QUERY"} - known:
            response = http.request(method, url)
            assert response.status_code == 405, method
            assert {each.strip() for each in response.headers["allow"].split(",")} == known
