"""A real browser on a real server, for the explorer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support import Served, put, serving
from visiting import PATIENCE_MS, Visit

MODELS = Path(__file__).parents[3] / "models"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The same pixels on every machine.
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
    "--hide-scrollbars",
    # A camera that shows a test picture.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def missing() -> str:
    """What these tests need and have not got; empty if nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "no playwright: scripts/install dev"
    return "" if CHROMIUM else "no browser: scripts/browser installs one"


class Skipped(pytest.Module):
    def collect(self) -> Iterator[Any]:
        pytest.skip(missing(), allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    # A skip while collecting, for the modules import playwright.
    return Skipped.from_parent(parent, path=module_path) if missing() else None


def branching_model() -> onnx.ModelProto:
    """Takes 20 × 24 RGB images: two residual blocks, a depthwise convolution, a concatenation; 12 classes."""
    random = np.random.default_rng(11)
    initializers: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weights(*shape: int) -> str:
        name = f"weights_{len(initializers)}"
        initializers.append(numpy_helper.from_array((random.standard_normal(shape) * 0.3).astype(np.float32), name))
        return name

    def add(kind: str, inputs: list[str], name: str, **options: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}:0"], name, **options))
        return f"{name}:0"

    def conv(x: str, name: str, before: int, after: int, side: int = 3, group: int = 1) -> str:
        pads = [side // 2] * 4
        return add(
            "Conv", [x, weights(after, before // group, side, side), weights(after)], name, pads=pads, group=group
        )

    x = add("Relu", [conv("x", "stem.conv", 3, 16)], "stem.relu")
    for name in ("block1", "block2"):
        inner = add("Relu", [conv(x, f"{name}.conv1", 16, 16)], f"{name}.relu1")
        x = add("Add", [conv(inner, f"{name}.conv2", 16, 16), x], f"{name}.add")
        x = add("Relu", [x], f"{name}.relu2")
    x = add("Concat", [conv(x, "depthwise", 16, 16, group=16), conv(x, "pointwise", 16, 8, side=1)], "concat", axis=1)
    x = add("Flatten", [add("GlobalAveragePool", [x], "pool")], "flatten")
    nodes.append(helper.make_node("Gemm", [x, weights(24, 12), weights(12)], ["y"], "classifier"))
    graph = helper.make_graph(
        nodes,
        "branching",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 20, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 12])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def with_sample(folder: Path, name: str, version: int, content: onnx.ModelProto | bytes) -> None:
    path = put(folder, name, version, content)
    (path.parent / "samples").mkdir()
    for sample in ("espresso", "pizza"):
        shutil.copy(MODELS / "tiny_vgg" / "1" / "samples" / f"{sample}.png", path.parent / "samples")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped models, and one that branches, in two versions."""
    folder = tmp_path_factory.mktemp("models")
    for model in MODELS.iterdir():
        shutil.copytree(model, folder / model.name)
    for version in (1, 2):
        with_sample(folder, "branching", version, branching_model())
    return folder


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Served]:
    """A server of the repository."""
    with serving(repository, datasets=(("foods", MODELS / "tiny_vgg" / "1" / "samples"),)) as server:
        yield server


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of ResNet-18, with random weights."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    folder = tmp_path_factory.mktemp("grown")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    with_sample(folder, "resnet18", 1, exported(torch, network, folder / "resnet18.onnx"))
    with serving(folder) as server:
        yield server


def exported(torch: Any, network: Any, path: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 224, 224),),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium.

    Playwright's event loop counts as running as long as Playwright does, so no other test may want one meanwhile: each
    module has a browser of its own.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as manager:
        browser = manager.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def visits(browser: Any, served: Served) -> Iterator[Visit]:
    visit = Visit(browser, f"http://127.0.0.1:{served.state.http_port}")
    yield visit
    visit.leave(anew=True)


def checked(visit: Visit, request: pytest.FixtureRequest) -> Iterator[Visit]:
    yield visit
    assert visit.leave(anew=request.node.stash.get(FAILED, False)) == []


@pytest.fixture(scope="module")
def visit_all(browser: Any, served: Served) -> Iterator[Visit]:
    yield from visits(browser, served)


@pytest.fixture(scope="module")
def visit_all_grown(browser: Any, grown: Served) -> Iterator[Visit]:
    yield from visits(browser, grown)


@pytest.fixture
def visit(visit_all: Visit, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """Opens pages; the test fails if a console shows an error, or a page asks another host."""
    yield from checked(visit_all, request)


@pytest.fixture
def visit_grown(visit_all_grown: Visit, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """As `visit`, of the server of ResNet-18."""
    yield from checked(visit_all_grown, request)
