"""Brings a model into the one form that the rest of the server works with, without changing what it computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, numpy_helper

from convlens_server.errors import ModelError
from convlens_server.graph import attribute, is_operand, taken

# Where torch's exporter writes which module a node comes from.
TORCH_SCOPES = "pkg.torch.onnx.name_scopes"

_CONSTANT_FORMS: dict[str, Any] = {
    "value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
}  # fmt: skip


def normalise(model: onnx.ModelProto) -> None:
    """Changes a model in place: no functions, constants as initialisers, initialisers not among the inputs.

    What is only for training, for debugging (stack traces in every node) or stale after a change of shape
    (value_info) is dropped.

    Raises:
        ModelError: The graph is malformed.
    """
    if model.functions:
        try:
            model.CopyFrom(onnx.inliner.inline_local_functions(model))
        except Exception as error:
            raise ModelError(f"its functions cannot be inlined: {' '.join(str(error).split())[:500]}") from None
    graph = model.graph
    model.ClearField("training_info")
    graph.ClearField("value_info")
    graph.ClearField("doc_string")
    nodes = []
    for node in graph.node:
        constant = _constant(node)
        if constant is None:
            nodes.append(node)
        else:
            graph.initializer.append(constant)
    set_nodes(graph, nodes)
    for node in graph.node:
        node.ClearField("doc_string")
        scopes = [entry for entry in node.metadata_props if entry.key == TORCH_SCOPES]
        if len(scopes) < len(node.metadata_props):
            kept = [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in scopes]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
    _check_names(graph)
    _check_initializers(graph)
    known = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name in known:
            del graph.input[index]
    # From version 4 on, initialisers are constants that need not be inputs.
    model.ir_version = max(model.ir_version, 4)
    _check_order(graph, known)


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replaces the nodes of a graph, by copies of nodes that may be its own."""
    copies = onnx.GraphProto(node=nodes)
    graph.ClearField("node")
    graph.node.extend(copies.node)


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    """The initialiser that a Constant node is; None for another node, and for a constant that is no dense number."""
    if node.op_type != "Constant" or len(node.output) != 1:
        return None
    if isinstance(tensor := attribute(node, "value"), TensorProto):
        named = TensorProto()
        named.CopyFrom(tensor)
        named.name = node.output[0]
        return named
    for form, dtype in _CONSTANT_FORMS.items():
        if (value := attribute(node, form)) is not None:
            return numpy_helper.from_array(np.asarray(value, dtype), node.output[0])
    return None


def _check_names(graph: onnx.GraphProto) -> None:
    """Protobuf hands out as bytes a string that is not UTF-8."""
    names = [graph.name, *[value.name for value in (*graph.input, *graph.output)]]
    names += [tensor.name for tensor in graph.initializer]
    for node in graph.node:
        names += (node.name, node.op_type, node.domain, *node.input, *node.output)
        names += [entry.name for entry in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise ModelError(f"the name {name!r} in it is not UTF-8; the file is damaged: export or copy it again")


def _check_initializers(graph: onnx.GraphProto) -> None:
    """Checks the types of all, and the values of those that are looked into before a session looks into all."""
    types = {value for name, value in TensorProto.DataType.items() if name != "UNDEFINED"}
    for tensor in graph.initializer:
        try:
            if tensor.data_type not in types or min(tensor.dims, default=0) < 0:
                raise ValueError(f"type {tensor.data_type}, dimensions {list(tensor.dims)}")
            if is_operand(tensor):
                numpy_helper.to_array(tensor)
        except Exception as error:
            # onnx raises what its parts raise: ValueError, TypeError, KeyError …
            raise ModelError(f"its tensor {tensor.name!r} is damaged ({error}); export or copy it again") from None


def _check_order(graph: onnx.GraphProto, known: set[str]) -> None:
    known = known | {value.name for value in graph.input}
    for node in graph.node:
        for name in taken(node):
            if name not in known:
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) takes tensor {name!r}, which nothing before it makes; "
                    "the graph is damaged: export it again"
                )
        known.update(node.output)
    for value in graph.output:
        if value.name not in known:
            raise ModelError(f"nothing makes its output {value.name!r}; the graph is damaged: export it again")
