from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from support import TRANSPORTS, Failure, Served, conv_model, linear_model, put, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: linear (versions 1 and 2), conv, and broken, whose only version is not ONNX."""
    folder = tmp_path_factory.mktemp("models")
    put(folder, "linear", 1, linear_model())
    put(folder, "linear", 2, linear_model())
    put(folder, "conv", 1, conv_model())
    put(folder, "broken", 1, b"not an ONNX file")
    return folder


@pytest.fixture(scope="session", params=TRANSPORTS)
def server(request: pytest.FixtureRequest, models: Path) -> Iterator[Served]:
    with serving(models, transport=request.param) as served:
        yield served


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    return serving


@pytest.fixture(scope="session")
def failing() -> Callable[[Callable[[], Any]], Failure]:
    """Makes a call that must fail, and checks what every failure must carry."""

    def failing(call: Callable[[], Any]) -> Failure:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        failure = Failure(caught.value)
        assert failure.status.code == failure.code.value[0]
        assert failure.status.message == failure.text
        assert failure.info.domain == "convlens"
        assert failure.reason
        return failure

    return failing
