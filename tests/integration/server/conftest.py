from __future__ import annotations

import contextlib
import warnings
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
def torchvision_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of torchvision's networks with random weights, for images of 64 × 64 pixels and 7 classes."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    folder = tmp_path_factory.mktemp("torchvision")
    torch.set_num_threads(1)
    for name in ("resnet18", "mobilenet_v3_small", "densenet121", "efficientnet_b0"):
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # As trained: not what leaves its input as it is.
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
        path = folder / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        example = (torch.zeros(1, 3, 64, 64),)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network, example, path, dynamo=False, input_names=["image"], dynamic_axes={"image": {0: "batch"}}
            )
    return folder


@pytest.fixture(scope="module")
def torchvision_models(torchvision_files: Path) -> Iterator[Served]:
    """A server of torchvision's networks."""
    with serving(torchvision_files, max_batch=1) as served:
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
