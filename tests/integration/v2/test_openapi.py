"""Requests made up from the OpenAPI description: nothing fails, and every answer is one that it describes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi import from_url
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support import conv_model, linear_model, put, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    put(folder, "lecture_cnn", 1, linear_model())
    put(folder, "conv", 1, conv_model())
    with serving(folder, allow_shared_memory=True) as server:
        yield from_url(f"http://127.0.0.1:{server.state.http_port}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation(description, mode):
    operations = [result.ok() for result in description.get_all_operations()]
    assert len(operations) == 22
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not list(operation.iter_parameters()) and not operation.body:
            continue  # Nothing of it can be wrong.

        @given(operation.as_strategy(generation_mode=mode), st.sampled_from([None, "conv", "lecture_cnn"]))
        @settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case, model):
            if model is not None and "model" in case.path_parameters:
                case.path_parameters["model"] = model
            case.call_and_validate(checks=CHECKS)

        check()
