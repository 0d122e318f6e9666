"""Cuts out of a graph what some of its tensors need, by walking back from them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from convlens_server.graph import Graph, taken


def truncate(model: onnx.ModelProto, graph: Graph, tensors: Iterable[str]) -> onnx.ModelProto:
    """The model that takes the same image and gives these tensors.

    Only the nodes and initialisers that the tensors need are copied: for ResNet-18's first block 0.7 % of its weights,
    in 0.4 ms. `onnx.utils.extract_model` copies all of them and infers shapes: 135 ms.

    Args:
        model: A model whose nodes are in the order of computation.
        graph: Its index.
        tensors: Names of tensors that its nodes make.

    Returns:
        A model whose outputs are the tensors, in the order given and without types: sessions infer them.
    """
    tensors = list(tensors)
    needed: set[str] = set()
    waiting = list(tensors)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            if (node := graph.producers.get(name)) is not None:
                waiting.extend(taken(node))
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = model.graph.name
    part.graph.input.extend(model.graph.input)
    part.graph.node.extend(node for node in graph.nodes if any(name in needed for name in node.output))
    part.graph.initializer.extend(tensor for name, tensor in graph.initializers.items() if name in needed)
    part.graph.sparse_initializer.extend(
        tensor for tensor in model.graph.sparse_initializer if tensor.values.name in needed
    )
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return part
