from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from convlens_server.catalogue import Catalogue, build_catalogue
from convlens_server.lens import Lens
from convlens_server.network import Network, load_network


class Builder:
    """Writes an ONNX graph node by node. Each call of `node` gives the name of the node's first output."""

    def __init__(self, shape: Sequence[Any], elem_type: int = TensorProto.FLOAT, opset: int = 18, ir: int = 9) -> None:
        self.inputs = [helper.make_tensor_value_info("x", elem_type, list(shape))]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.opset, self.ir, self.elem_type = opset, ir, elem_type
        self.random = np.random.default_rng(0)

    def constant(self, values: Any, dtype: Any = np.float32, name: str = "") -> str:
        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int, dtype: Any = np.float32, name: str = "") -> str:
        return self.constant(self.random.standard_normal(shape) * 0.3, dtype, name)

    def node(self, op_type: str, *inputs: str, name: str = "", outputs: int = 1, domain: str = "", **attributes: Any):
        made = [f"{op_type}_{len(self.nodes)}_{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), made, name, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def head(self, tensor: str, features: int, classes: int = 2, dtype: Any = np.float32) -> str:
        flat = self.node("Flatten", tensor, name="flatten")
        weights = self.weights(features, classes, dtype=dtype), self.weights(classes, dtype=dtype)
        return self.node("Gemm", flat, *weights, name="output")

    def model(self, *outputs: str, shape: Sequence[Any] | None = None, elem_type: int | None = None) -> onnx.ModelProto:
        kind = self.elem_type if elem_type is None else elem_type
        if kind == TensorProto.UINT8:
            kind = TensorProto.FLOAT
        infos = [helper.make_tensor_value_info(name, kind, shape) for name in outputs]
        graph = helper.make_graph(self.nodes, "test", self.inputs, infos, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain for node in self.nodes):
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir)


class Opened:
    """A file as the server has it: network, catalogue, lens, and a session that classifies."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.network: Network = load_network(path)
        self.catalogue: Catalogue = build_catalogue(self.network)
        self.sessions_made = 0
        self.lens = Lens(self.network, self.catalogue, self.make_session, **options)
        self.session = self.make_session(self.network.model.SerializeToString())

    def make_session(self, content: bytes) -> onnxruntime.InferenceSession:
        self.sessions_made += 1
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def images(self, count: int, seed: int = 0) -> np.ndarray:
        image = self.network.manifest.input
        size = (count, image.height, image.width, image.channels)
        return np.random.default_rng(seed).integers(0, 256, size, np.uint8)

    def classify(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        names = [self.network.scores_name, self.network.logits_name]
        scores, logits = self.session.run(names, {self.network.input_name: images})
        return scores, logits

    def maps(self, images: np.ndarray, *names: str) -> list[np.ndarray]:
        return self.lens.maps(images, [self.catalogue[name] for name in names])


@pytest.fixture
def builder() -> type[Builder]:
    return Builder


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Puts a model into a version's folder, with a manifest.json if there is one, and gives the file's path."""

    def save(model: onnx.ModelProto | bytes, manifest: dict[str, Any] | str | None = None) -> Path:
        folder = tmp_path / "model" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        if manifest is not None:
            text = manifest if isinstance(manifest, str) else json.dumps(manifest)
            (folder / "manifest.json").write_text(text)
        return path

    return save


@pytest.fixture
def serve(save: Callable[..., Path]) -> Callable[..., Opened]:
    """Opens a model as the server does."""

    def serve(model: onnx.ModelProto, manifest: dict[str, Any] | None = None, **options: Any) -> Opened:
        return Opened(save(model, manifest), **options)

    return serve


@pytest.fixture(scope="session")
def open_file() -> type[Opened]:
    return Opened


@pytest.fixture(scope="session")
def export() -> Callable[..., None]:
    """Exports a torch network with either of torch's exporters, with a dynamic batch."""
    import torch

    torch.set_num_threads(1)

    def export(module: Any, example: Any, path: Path, dynamo: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if dynamo:
                dims = ({0: torch.export.Dim("batch")},)
                program = torch.onnx.export(
                    module, (example,), dynamo=True, dynamic_shapes=dims, verbose=False, external_data=False
                )
                program.save(path)
            else:
                axes = {"image": {0: "batch"}}
                torch.onnx.export(module, (example,), path, dynamo=False, input_names=["image"], dynamic_axes=axes)

    return export
