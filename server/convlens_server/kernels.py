"""GetKernels: the weights and biases of one layer, as the network has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from convlens.v1 import convlens_pb2 as pb
from convlens_server.anatomy import Anatomy
from convlens_server.catalogue import Layer
from convlens_server.encoding import check_value_type, encode
from convlens_server.errors import InvalidRequest, NotApplicable
from convlens_server.graph import attribute
from convlens_server.lens import Lens, check_channels
from convlens_server.maps import FeatureMaps
from convlens_server.model import Model
from convlens_server.paced import chunks
from convlens_server.transport.base import Call

_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})
# Their second and third input are a scale and a bias for each channel (of old group normalisations: for each group).
_NORMALISATIONS = frozenset({
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
})  # fmt: skip


class Kernels(NamedTuple):
    """The trained values of a layer.

    Attributes:
        weights: Output channels first: channels × input channels of one group × rows × columns of a convolution, units
            × input units of a dense layer, one a channel of a normalisation. Of the network's own type.
        bias: One for each output channel; None where there is none.
    """

    weights: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None


def get_kernels(
    feature_maps: FeatureMaps, model: Model, request: pb.GetKernelsRequest, call: Call
) -> Iterator[pb.GetKernelsResponse]:
    """The answer to GetKernels, in chunks.

    Args:
        feature_maps: Bounds the bytes of maps, and of these weights, that all callers together hold.
        model: The model.
        request: The request.
        call: The call.
    """
    layer = model.lens.layer(request.layer)
    value_type = check_value_type(request.value_type)
    kernels = kernels_of(model.lens, model.catalogue.anatomy, layer)
    if kernels is None:
        having = [other.name for other in model.catalogue.layers if other.parameters]
        shown = f"{', '.join(having[:12])}{', …' if len(having) > 12 else ''}"
        raise NotApplicable(
            f"layer {layer.name!r} is of the kind {layer.kind}, which has no kernels; layers with trained values are "
            f"{shown or 'not in this model'}",
            reason="NO_KERNELS",
            metadata={"layer": layer.name, "kind": layer.kind},
        )
    weights, bias = kernels
    channels = check_channels(request.channels, layer.name, len(weights))
    size = 4 * math.prod(weights.shape[1:]) * (len(channels) or len(weights))
    limit = feature_maps.limits.feature_map_bytes
    if size > limit:
        raise InvalidRequest(
            f"the weights of layer {layer.name!r} that were asked for have {size} bytes as float32, over the limit of "
            f"{limit}: ask for fewer channels a request, or start the server with a larger --max-feature-map-bytes",
            reason="TOO_MANY_BYTES",
            field="channels",
            metadata={"bytes": size, "limit": limit},
        )
    feature_maps.hold(size)
    try:
        if channels:
            weights, bias = weights[channels], None if bias is None else bias[channels]
        encoded = encode(np.asarray(weights, np.float32)[None], value_type)
        pieces = chunks(encoded.data)
        yield pb.GetKernelsResponse(
            layer=layer.name,
            data=next(pieces)[1],
            kind=layer.kind,
            shape=weights.shape,
            channels=channels,
            value_type=value_type,
            scale=encoded.scale,
            offset=encoded.offset,
            total_bytes=len(encoded.data),
            bias=() if bias is None else np.asarray(bias, np.float32),
            groups=layer.groups,
            model=model.name,
            version=model.version,
        )
        for offset, data in pieces:
            yield pb.GetKernelsResponse(layer=layer.name, byte_offset=offset, data=data)
    finally:
        feature_maps.let_go(size)


def kernels_of(lens: Lens, anatomy: Anatomy, layer: Layer) -> Kernels | None:
    """The trained values of a layer: of a quantised network dequantised, of a dense layer with its own factors in them.

    Args:
        lens: Of the network.
        anatomy: Of the network.
        layer: Of its catalogue.

    Returns:
        None for a layer that has none, or has them in another form than `Kernels` can say.
    """
    operation = anatomy.operations[layer.name]
    if not layer.parameters:
        return None
    nodes = [operation.node, *([operation.bias] if operation.bias is not None else [])]
    names = [name for node in nodes for name in node.input if name and anatomy.graph.is_constant(name)]
    values = lens.constants(names)
    kernels = _kernels(operation.node, values)
    if kernels is not None and operation.bias is not None:
        return Kernels(kernels.weights, next(values[name] for name in operation.bias.input if name in values))
    return kernels


def _kernels(node: onnx.NodeProto, values: dict[str, npt.NDArray[Any]]) -> Kernels | None:
    first, second, third = (values.get(name) for name in (*node.input, "", "")[:3])
    match node.op_type:
        case "Conv" if second is not None:
            return Kernels(second, third)
        case "ConvTranspose" if second is not None:
            # Input channels × output channels of a group: turned round within each group.
            groups = int(attribute(node, "group", 1))
            grouped = second.reshape(groups, -1, *second.shape[1:]).swapaxes(1, 2)
            return Kernels(grouped.reshape(-1, *grouped.shape[2:]), third)
        case "Gemm" if second is not None:
            weights = second if attribute(node, "transB", 0) else second.T
            if (alpha := attribute(node, "alpha", 1.0)) != 1:
                weights = weights * np.float32(alpha)
            if third is not None:
                third = np.broadcast_to(np.ravel(third), len(weights)) * np.float32(attribute(node, "beta", 1.0))
            return Kernels(weights, third)
        case "MatMul" if second is not None and second.ndim == 2:
            return Kernels(second.T, None)
        case "MatMul" if first is not None and first.ndim == 2:
            return Kernels(first, None)
        case name if name in _NORMALISATIONS and second is not None:
            return Kernels(second, third)
        case "PRelu" if second is not None:
            return Kernels(_squeezed(second), None)
        case name if name in _ARITHMETIC and (constant := first if second is None else second) is not None:
            return Kernels(_squeezed(constant), None)
    return None


def _squeezed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without the dimensions of 1 that are there for broadcasting; at least one is left."""
    return values.reshape([dim for dim in values.shape if dim != 1] or [1])
