"""Puts nodes in front of a classifier and behind it: uint8 images in, scores and logits in float32 out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from convlens.manifest import ImageInput
from convlens_server.errors import ModelError
from convlens_server.graph import Graph, attribute, elem_type_name, unused
from convlens_server.normalise import set_nodes

# Begin the names of nodes that turn pixels into the network's values, and its output into float32 logits; they are
# no layers of the network.
PREPROCESSING = "preprocess/"
_POSTPROCESSING = "postprocess/"
AROUND = (PREPROCESSING, _POSTPROCESSING)

# Operators that may stand between a network's softmax and its output: they only arrange the values anew.
_ARRANGING = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze"})


def add_preprocessing(
    model: onnx.ModelProto, image: ImageInput, elem_type: int, channels_last: bool, batch: int | None
) -> str:
    """Replaces a model's float image input by a uint8 N × height × width × channels one.

    The manifest's (p / 255 × (high − low) + low − mean) / std is one multiplication and one addition for each pixel,
    with a factor and a term for each channel that are computed here in float64.

    Args:
        model: Has one input; changed in place.
        image: What the network takes.
        elem_type: TensorProto.DataType of the network's own input, FLOAT or FLOAT16.
        channels_last: Whether the network's own input is N × height × width × channels.
        batch: Images in a batch where the file fixes it.

    Returns:
        The name of the new input.
    """
    graph = model.graph
    original = graph.input[0].name
    names = Graph(model, original).names()
    low, high = image.value_range
    std = np.array(image.std or [1.0] * image.channels)
    factor = (high - low) / 255 / std
    term = (low - np.array(image.mean or [0.0] * image.channels)) / std

    name = unused("image", names)
    tensor, nodes = name, []

    def step(op_type: str, what: str, operand: str = "", **attributes: Any) -> None:
        nonlocal tensor
        inputs = [tensor, operand] if operand else [tensor]
        tensor = unused(PREPROCESSING + what + "_output", names)
        nodes.append(helper.make_node(op_type, inputs, [tensor], unused(PREPROCESSING + what, names), **attributes))

    def operand(what: str, values: npt.NDArray[np.float64]) -> str:
        operand_name = unused(PREPROCESSING + what, names)
        shaped = values if channels_last else values.reshape(-1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(shaped.astype(np.float32), operand_name))
        return operand_name

    # Moving bytes, then computing, takes 0.13 ms for a 224×224 image; moving floats afterwards takes 1.15 ms.
    if not channels_last:
        step("Transpose", "transpose", perm=[0, 3, 1, 2])
    step("Cast", "cast", to=TensorProto.FLOAT)
    if np.any(factor != 1):
        step("Mul", "scale", operand("factor", factor))
    if np.any(term != 0):
        step("Add", "shift", operand("term", term))
    if elem_type != TensorProto.FLOAT:
        step("Cast", "narrow", to=elem_type)
    nodes[-1].output[0] = original

    set_nodes(graph, [*nodes, *graph.node])
    set_image_input(graph, name, image, batch)
    return name


def without_preprocessing(network: onnx.ModelProto, own: onnx.ValueInfoProto) -> onnx.ModelProto:
    """The model as it was before `add_preprocessing`, with all that came behind it since.

    Args:
        network: A model with preprocessing; copied.
        own: The input that it had.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    nodes = model.graph.node
    del nodes[: next(n for n, node in enumerate(nodes) if own.name in node.output) + 1]
    del model.graph.input[:]
    model.graph.input.append(own)
    return model


def set_image_input(graph: onnx.GraphProto, name: str, image: ImageInput, batch: int | None) -> None:
    """Makes uint8 batch × height × width × channels the only input of a graph; batch None is any number of images."""
    shape = ["batch" if batch is None else batch, image.height, image.width, image.channels]
    graph.ClearField("input")
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))


def add_head(model: onnx.ModelProto, image: str) -> tuple[str, str]:
    """Makes scores and logits, float32, the outputs of a model that has one output.

    A network that ends in a softmax has its input as logits. One that ends in the logarithm of a softmax has that
    one's input as logits, and an exponential is put behind it. Whatever else it ends in is taken for logits, and a
    softmax is put behind it.

    Args:
        model: Changed in place; the element type of its output is declared.
        image: Name of its input.

    Returns:
        The names of the scores and of the logits.

    Raises:
        ModelError: The output holds no float32 or float16 numbers.
    """
    graph = model.graph
    output = graph.output[0]
    elem_type = output.type.tensor_type.elem_type
    if elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        raise ModelError(
            f"its output {output.name!r} holds {elem_type_name(elem_type)} numbers, but a classifier's are "
            "float32 or float16; export the scores or logits as its only output"
        )
    index = Graph(model, image)
    names = index.names()
    nodes: list[onnx.NodeProto] = []

    def behind(op_type: str, tensor: str, name: str, **attributes: Any) -> str:
        made = unused(name + "_output", names)
        names.add(made)
        nodes.append(helper.make_node(op_type, [tensor], [made], unused(name, names), **attributes))
        return made

    def widened(tensor: str, name: str) -> str:
        return behind("Cast", tensor, name, to=TensorProto.FLOAT) if elem_type == TensorProto.FLOAT16 else tensor

    end, arranging = _end(index, output.name)
    if end is None:
        logits = widened(output.name, _POSTPROCESSING + "widen_logits")
        scores = behind("Softmax", logits, "softmax", axis=-1)
    else:
        logits = end.input[0]
        for node in reversed(arranging):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = unused(_POSTPROCESSING + (node.name or node.op_type.lower()), names)
            copy.input[0] = logits
            logits = copy.output[0] = unused(copy.name + "_output", names)
            names.add(logits)
            nodes.append(copy)
        logits = widened(logits, _POSTPROCESSING + "widen_logits")
        scores = widened(output.name, _POSTPROCESSING + "widen_scores")
        if end.op_type == "LogSoftmax":
            scores = behind("Exp", scores, "exp")
    set_nodes(graph, [*graph.node, *nodes])
    return scores, logits


def _end(graph: Graph, output: str) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
    """The softmax that a network ends in, and the nodes behind it, last first; without one None."""
    arranging = []
    node = graph.producers.get(output)
    while node is not None and node.op_type in _ARRANGING:
        arranging.append(node)
        node = graph.producers.get(node.input[0])
    # Over axis 0 it would mix images.
    if node is None or node.op_type not in ("Softmax", "LogSoftmax") or attribute(node, "axis", -1) == 0:
        return None, []
    return node, arranging
