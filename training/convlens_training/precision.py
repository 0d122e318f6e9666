"""Rewrites an export in another precision; inputs, outputs, preprocessing and the names of layers stay."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from convlens_training.export import INPUT, strip

# The ranges of lecture_cnn's activations no longer change after 200 images.
CALIBRATION_IMAGES = 512
# Or fewer of large images: of 224 × 224, 30 images in maxvit_t took more than 22 GiB.
_CALIBRATION_BATCH = 32
_CALIBRATION_PIXELS = _CALIBRATION_BATCH * 64 * 64

_PREPROCESSING = "preprocess/"
# The server takes nodes of these names for no layers.
_NARROW, _WIDEN = "preprocess/narrow", "postprocess/widen"
# Tells onnxruntime's quantiser not to advise on standard error to fold layers first, which would take their names.
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with weights and arithmetic in float16.

    The image is normalised in float32 and then cast; logits are cast to float32 before the softmax. Operators that
    onnxruntime has in float32 only are left so, between casts.

    Args:
        model: Of `export.to_onnx`, with or without its manifest; left as it is.

    Returns:
        A model without metadata.
    """
    *nodes, softmax = model.graph.node
    preprocessing = [node for node in nodes if node.name.startswith(_PREPROCESSING)]
    body = [node for node in nodes if not node.name.startswith(_PREPROCESSING)]
    made = {name for node in preprocessing for name in node.output}
    start = next(name for node in body for name in node.input if name in made)
    end = softmax.input[0]
    taken = {name for node in body for name in node.input}
    part = helper.make_model(
        helper.make_graph(
            body,
            model.graph.name,
            [helper.make_tensor_value_info(start, TensorProto.FLOAT, _shape(model, start))],
            [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
            [tensor for tensor in model.graph.initializer if tensor.name in taken],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    narrowed = convert_float_to_float16(part, keep_io_types=True).graph
    for node in narrowed.node:
        node.name = {"graph_input_cast0": _NARROW, "graph_output_cast0": _WIDEN}.get(node.name, node.name)
    used = {name for node in preprocessing for name in node.input}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("initializer")
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    result.graph.initializer.extend(narrowed.initializer)
    return _finished(result, [*preprocessing, *narrowed.node, softmax], model)


def to_int8(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    """The same network with weights and arithmetic in eight bits, as QuantizeLinear and DequantizeLinear nodes.

    Weights are signed and have a scale for each output channel; activations are unsigned and have one for each tensor,
    from the least and the greatest value on the calibration images. Preprocessing and softmax stay float32. Each layer
    stays a node of its own; the runtime fuses them.

    Weights use seven of the eight bits: with eight the sums of products saturate at 16 bits on x86 processors without
    VNNI, where the file may be served. On MNIST that makes no difference to lecture_cnn's accuracy or speed.

    Args:
        model: Of `export.to_onnx`, with or without its manifest; left as it is.
        images: Training images, uint8 N × height × width × channels; up to `CALIBRATION_IMAGES` of them are used,
            evenly spaced.

    Returns:
        A model without metadata.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    helper.set_model_props(prepared, _PREPARED)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        with _quiet():
            quantize_static(
                prepared,
                file,
                _Calibration(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[
                    *(node.name for node in model.graph.node if node.name.startswith(_PREPROCESSING)),
                    model.graph.node[-1].name,
                ],
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"QDQKeepRemovableActivations": True},
            )
        quantised = onnx.load(file)
    return _finished(quantised, _unrounded(quantised.graph, model.graph.node[-1].output[0]), model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from standard error what the quantiser warns of through logging's root: nothing that users can change."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _unrounded(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """The nodes of a quantised graph without those that round what goes into the last softmax or an activation.

    Cut off at the calibration images' extremes, lecture_cnn's logits differed from float32's by up to 1.0, else by 0.1.
    Before an activation the quantiser cuts off what the activation will: a layer's feature maps would be those of the
    activation behind it. The runtime computes all of it in eight bits just the same.
    """
    makers = {name: node for node in graph.node for name in node.output}
    consumers = Counter(name for node in graph.node for name in node.input)
    left_out = set()
    for node in graph.node:
        if node.op_type not in ("Clip", "Relu") and node.output[0] != output:
            continue
        rounding = []
        tensor = node.input[0]
        for op_type in ("DequantizeLinear", "QuantizeLinear"):
            maker = makers.get(tensor)
            if maker is None or maker.op_type != op_type or consumers[tensor] != 1:
                break
            rounding.append(tensor)
            tensor = maker.input[0]
        else:
            node.input[0] = tensor
            left_out.update(rounding)
    return [node for node in graph.node if node.output[0] not in left_out]


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        chosen = np.linspace(0, len(images) - 1, min(len(images), CALIBRATION_IMAGES)).round().astype(int)
        count = max(1, min(_CALIBRATION_BATCH, _CALIBRATION_PIXELS // (images.shape[1] * images.shape[2])))
        self._batches = (images[chosen[start : start + count]] for start in range(0, len(chosen), count))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _shape(model: onnx.ModelProto, tensor: str) -> list[str | int | None]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    value = next(value for value in inferred.value_info if value.name == tensor)
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _finished(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], original: onnx.ModelProto) -> onnx.ModelProto:
    """The model with these nodes in the order of computation, those of the original in the order that they had."""
    copies = onnx.GraphProto(node=_in_order(list(nodes), [node.output[0] for node in original.graph.node]))
    model.graph.ClearField("node")
    model.graph.node.extend(copies.node)
    used = {name for node in model.graph.node for name in node.input}
    weights = sorted((tensor for tensor in model.graph.initializer if tensor.name in used), key=lambda t: t.name)
    copies = onnx.GraphProto(initializer=weights)
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(copies.initializer)
    model.producer_name, model.producer_version = original.producer_name, original.producer_version
    model.ClearField("metadata_props")
    strip(model)
    return model


def _in_order(nodes: list[onnx.NodeProto], tensors: list[str]) -> Iterator[onnx.NodeProto]:
    makers = {name: node for node in nodes for name in node.output}
    places = {name: place for place, name in enumerate(tensors)}
    done: set[str] = set()

    def with_makers(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        if node.output[0] in done:
            return
        done.add(node.output[0])
        for name in node.input:
            if name in makers:
                yield from with_makers(makers[name])
        yield node

    for node in sorted(nodes, key=lambda node: places.get(node.output[0], len(places))):
        yield from with_makers(node)
