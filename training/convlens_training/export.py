"""Exports a network to ONNX: uint8 images in, scores out, layers by name, nothing of this machine in the file."""

from __future__ import annotations

import ast
import copy
import logging
import warnings

import onnx
import torch
from torch import nn

from convlens.manifest import METADATA_KEY, Manifest
from convlens_training.architectures.network import BODY
from convlens_training.errors import TrainingError

# Opset 18 in IR version 8 is read by onnxruntime 1.14 and later.
OPSET, IR_VERSION = 18, 8
# Of a network with more layers than this, an error shows only these.
_NAMES_SHOWN = 24
INPUT, OUTPUT = "image", "scores"

_SCOPES = "pkg.torch.onnx.name_scopes"
# What torch's exporter puts in front, such as the number of images, comes from a module of its own making.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
_PREPROCESSING = {"Transpose": "transpose", "Cast": "cast", "Mul": "scale", "Add": "shift"}


def to_onnx(network: nn.Sequential, size: tuple[int, int, int]) -> onnx.ModelProto:
    """Exports a network, for any number of images.

    Input `image` is uint8 N × height × width × channels, output `scores` float32 N × classes. Nodes, and the tensors
    they make, have the names of the network's modules; those of its first module are `preprocess/transpose`,
    `preprocess/cast`, `preprocess/scale` and `preprocess/shift`, in this order. Dropout is left out.

    Args:
        network: As `networks.build` makes them; left in evaluation mode, on the CPU.
        size: Height, width, channels.

    Raises:
        TrainingError: torch's exporter made something else of it.
    """
    network.eval().cpu()
    example = torch.zeros(2, *size, dtype=torch.uint8)
    chatty = logging.getLogger("torch.onnx")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _exportable(network),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        chatty.setLevel(level)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _rename(model.graph, network)
    strip(model)
    _check(model, network)
    return model


def with_manifest(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The file: a model of `to_onnx` with its manifest in the metadata."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    onnx.helper.set_model_props(made, {METADATA_KEY: manifest.to_json()})
    content: bytes = made.SerializeToString(deterministic=True)
    # Read again from what will be the file.
    onnx.checker.check_model(content, full_check=True)
    return content


def _rename(graph: onnx.GraphProto, network: nn.Sequential) -> None:
    """Gives nodes and tensors the names of the modules that they come from, as torch's exporter wrote them down."""
    leaves = {name.removeprefix(f"{BODY}.") for name, module in network.named_modules() if not any(module.children())}
    unnamed = {tensor.name for tensor in graph.initializer if "." not in tensor.name}
    tensors = {tensor.name: tensor.name.removeprefix(f"{BODY}.") for tensor in graph.initializer}
    # What else takes the image, if only to count, comes after the preprocessing.
    nodes = sorted(graph.node, key=lambda node: _module(node) != "preprocess")
    del graph.node[:]
    graph.node.extend(nodes)
    taken: set[str] = set()
    for node in graph.node:
        module = _module(node)
        name = f"preprocess/{_PREPROCESSING.get(node.op_type, node.op_type)}" if module == "preprocess" else module
        if module not in leaves:
            # What a module that holds others computes itself, e.g. the sum in layer1.0.
            name = ".".join(filter(None, (module, node.op_type.lower())))
        number, node.name = 1, name
        while node.name in taken:
            number += 1
            node.name = f"{name}_{number}"
        taken.add(node.name)
        tensors.update({output: f"{node.name}:{n}" if n else node.name for n, output in enumerate(node.output)})
        tensors.update({name: f"{node.name}.operand_{n}" for n, name in enumerate(node.input) if name in unnamed})
    tensors[graph.output[0].name] = OUTPUT
    for node in graph.node:
        node.input[:] = [tensors.get(name, name) for name in node.input]
        node.output[:] = [tensors.get(name, name) for name in node.output]
    for initializer in graph.initializer:
        initializer.name = tensors.get(initializer.name, initializer.name)
    graph.output[0].name = OUTPUT


def _module(node: onnx.NodeProto) -> str:
    """The innermost module that a node comes from; "" for the network itself."""
    if node.op_type in ("Conv", "Gemm") and "." in node.input[1]:
        # A batch normalisation that was folded into its convolution leaves it under its own name.
        return node.input[1].removeprefix(f"{BODY}.").rpartition(".")[0]
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    # E.g. ['', 'conv_1', 'conv2d']: the modules from outside in, then the call.
    module = ["", *(str(scope) for scope in ast.literal_eval(scopes)[:-1])][-1]
    return "" if module in (BODY, _NO_MODULE) else module.removeprefix(f"{BODY}.")


class _Mean(nn.Module):
    """The average over height and width, which torch's exporter makes one node of; of AdaptiveAvgPool2d eight."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.mean((2, 3), keepdim=True)


def _exportable(network: nn.Sequential) -> nn.Sequential:
    """A copy of a network for the exporter, which computes the same."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
                setattr(parent, name, _Mean())
    return network


def strip(model: onnx.ModelProto) -> None:
    """Leaves out what is there for debugging: stack traces with this machine's paths, in every node and tensor."""
    graph = model.graph
    graph.name = "network"
    graph.ClearField("value_info")
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    model.ir_version = IR_VERSION


def _check(model: onnx.ModelProto, network: nn.Sequential) -> None:
    names = [node.name for node in model.graph.node]
    preprocessing = [f"preprocess/{what}" for what in _PREPROCESSING.values()]
    inside = [(name, module) for name, module in network.named_children() if name not in ("preprocess", "softmax")]
    # What a network that is no plain sequence becomes is the exporter's affair, but for its ends.
    layers = [name for name, module in inside if not isinstance(module, (nn.Dropout, nn.BatchNorm2d))]
    if [name for name, _ in inside] == [BODY]:
        layers = [name for name in names[len(preprocessing) : -1] if not name.startswith(("preprocess", "softmax"))]
    expected = [*preprocessing, *layers, "softmax"]
    if names != expected or model.functions or [entry.version for entry in model.opset_import] != [OPSET]:
        raise TrainingError(
            f"torch {torch.__version__}'s exporter made the nodes {_listed(names)} of the network, instead of "
            f"{_listed(expected)} in opset {OPSET}: use another release of torch"
        )


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= _NAMES_SHOWN else [*names[: _NAMES_SHOWN - 2], "…", names[-1]]
    return ", ".join(shown)
