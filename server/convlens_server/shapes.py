"""The number format and shape of every tensor of a graph.

onnx's shape inference runs on a copy without weights: 1 ms for ResNet-18, where the whole model would be serialised
twice. What it cannot tell (it gives up on the shape arithmetic of some exports) is told by a run of the graph.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from convlens_server.errors import ModelError
from convlens_server.graph import Graph, is_operand
from convlens_server.subgraph import truncate

# Stands for "any batch size" in shapes: a prime that no real dimension is likely to be a multiple of, so that the
# batch is found again wherever a graph moves it. onnx propagates ranges of this length, which takes time: for
# ConvNeXt 9 ms at 251, 600 ms at 9973.
BATCH = 251

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


class TensorType(NamedTuple):
    """What a tensor is.

    Attributes:
        elem_type: TensorProto.DataType of its numbers; UNDEFINED for what is no tensor.
        dims: Its shape. The batch is `BATCH`, or the size that the file fixes.
    """

    elem_type: int
    dims: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.elem_type in FLOATS

    def batch_axis(self, batch: int) -> int | None:
        """The axis that counts images; None where the graph has none, or has merged it with another."""
        if batch != BATCH:
            return 0 if self.dims and self.dims[0] == batch else None
        return self.dims.index(BATCH) if BATCH in self.dims else None


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model in which large initialisers are inputs: small, and of the same shapes."""
    graph = model.graph
    copy = onnx.ModelProto(ir_version=min(model.ir_version, onnx.IR_VERSION), opset_import=model.opset_import)
    copy.graph.name = graph.name or "graph"
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    copy.graph.node.extend(graph.node)
    for tensor in graph.initializer:
        if is_operand(tensor):
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for sparse in graph.sparse_initializer:
        kind = (sparse.values.data_type, sparse.dims)
        copy.graph.input.append(helper.make_tensor_value_info(sparse.values.name, *kind))
    return copy


def infer_types(model: onnx.ModelProto, graph: Graph, batch: int) -> dict[str, TensorType]:
    """What onnx's shape inference can tell of a graph's tensors.

    Args:
        model: Its only input is the image, of fixed height, width and channels.
        graph: Its index.
        batch: Images in a batch.

    Returns:
        By name, tensors of completely known shape only, initialisers included.

    Raises:
        ModelError: The shapes of a graph contradict each other.
    """
    skeleton = without_weights(model)
    skeleton.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for value in skeleton.graph.output:
        value.ClearField("type")
    types = _initializer_types(graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True).graph
    except Exception as error:
        # onnx raises its own errors as RuntimeError, ValueError and others, by version and kind.
        raise ModelError(f"its shapes contradict each other: {' '.join(str(error).split())[:500]}") from None
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if not value.type.HasField("tensor_type"):
            if value.type.WhichOneof("value") is not None:
                types[value.name] = TensorType(TensorProto.UNDEFINED, ())
            continue
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            types[value.name] = TensorType(kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim))
    return types


def tensor_types(model: onnx.ModelProto, graph: Graph, batch: int, wanted: Collection[str]) -> dict[str, TensorType]:
    """What the tensors of a graph are, from inference and, for those it leaves open, from a run on black images.

    Args:
        model: Its only input is the image, of fixed height, width and channels.
        graph: Its index.
        batch: Images in a batch: what the file fixes, any other number, or `BATCH` for whichever there are.
        wanted: Tensors that must be known.

    Returns:
        By name; at least those wanted.

    Raises:
        ModelError: onnxruntime cannot run the graph.
    """
    try:
        types = infer_types(model, graph, batch)
    except ModelError:
        # Inference is stricter than the runtime in places; a graph that is really wrong fails in the run as well.
        types = _initializer_types(graph)
    if missing := [name for name in wanted if name not in types]:
        types.update(_run(model, graph, batch, missing))
    return types


def _initializer_types(graph: Graph) -> dict[str, TensorType]:
    types = {name: TensorType(tensor.data_type, tuple(tensor.dims)) for name, tensor in graph.initializers.items()}
    for sparse in graph.proto.sparse_initializer:
        types[sparse.values.name] = TensorType(sparse.values.data_type, tuple(sparse.dims))
    return types


def _run(model: onnx.ModelProto, graph: Graph, batch: int, tensors: list[str]) -> dict[str, TensorType]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    image = model.graph.input[0]
    declared, *size = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    images = declared or (2 if batch == BATCH else batch)
    pixels = np.zeros((images, *size), np.uint8)
    try:
        content = truncate(model, graph, tensors).SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        values = session.run(None, {image.name: pixels})
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(f"onnxruntime {onnxruntime.__version__} cannot run the graph: {reason}") from None
    types = {}
    for name, value in zip(tensors, values, strict=True):
        if not isinstance(value, np.ndarray):
            types[name] = TensorType(TensorProto.UNDEFINED, ())
            continue
        dims = (batch, *value.shape[1:]) if value.shape[:1] == (images,) else value.shape
        types[name] = TensorType(helper.np_dtype_to_tensor_dtype(value.dtype), dims)
    return types
