"""Writes small ONNX graphs, and opens files as the server does, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
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
