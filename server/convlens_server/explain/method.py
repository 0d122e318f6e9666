"""ExplainUnit: the exact arithmetic that makes one unit's activation of the values before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from convlens.v1 import convlens_pb2 as pb
from convlens_server.aside import Aside
from convlens_server.explain import functions, others, pooling, weighted
from convlens_server.explain.operands import Operands
from convlens_server.model import Model
from convlens_server.transport.base import Call

Arithmetic: TypeAlias = pb.WeightedSum | pb.Pooling | pb.Function | pb.Elementwise | pb.Selection | pb.Softmax
Explanation: TypeAlias = Callable[[Operands], tuple[float, Arithmetic]]

# By ONNX operator.
EXPLANATIONS: Mapping[str, Explanation] = {
    "AveragePool": pooling.average_pool,
    "BatchNormalization": functions.batch_norm,
    "Clip": functions.clip,
    "Conv": weighted.convolution,
    "ConvTranspose": weighted.transposed_convolution,
    "Gemm": weighted.general_matrix_product,
    "GlobalAveragePool": pooling.global_pool,
    "GlobalMaxPool": pooling.global_pool,
    "GroupNormalization": functions.group_norm,
    "InstanceNormalization": functions.instance_norm,
    "LRN": functions.local_response_norm,
    "LayerNormalization": functions.layer_norm,
    "LogSoftmax": others.softmax,
    "MatMul": weighted.matrix_product,
    "MaxPool": pooling.max_pool,
    "PRelu": functions.prelu,
    "ReduceMax": pooling.reduction,
    "ReduceMean": pooling.reduction,
    "ReduceSum": pooling.reduction,
    "Softmax": others.softmax,
    **dict.fromkeys(functions.ACTIVATIONS, functions.activation),
    **dict.fromkeys(others.ELEMENTWISE, others.elementwise),
    **dict.fromkeys(others.SELECTIONS, others.selection),
}

_FIELDS: Mapping[type[Arithmetic], str] = {
    pb.WeightedSum: "weighted_sum",
    pb.Pooling: "pooling",
    pb.Function: "function",
    pb.Elementwise: "elementwise",
    pb.Selection: "selection",
    pb.Softmax: "softmax",
}


def explain_unit(
    aside: Aside, model: Model, request: pb.ExplainUnitRequest, call: Call
) -> Iterator[pb.ExplainUnitResponse]:
    """The answer to ExplainUnit.

    The operands are what the layer's node really takes, from one run of the part of the network up to it. The result
    is computed of them in float64, and equals the engine's activation but for its rounding: in float32 networks within
    1e-4 of the sum of the terms' magnitudes. These are |products| and |bias| of a weighted sum, |values| ÷ divisor of a
    mean, |operands| of a sum or difference, |x|, |bias| and |result| of a function, 1 and |result| of a log_softmax,
    |result| of all else. A float16 network rounds each activation to 11 bits, a quantised one to its levels, which end
    somewhere: there the activation may be far from the result.

    Args:
        aside: Reads the image.
        model: The model.
        request: The request.
        call: The call.

    Raises:
        NotFound: No such layer or unit.
        Unimplemented: The layer's kind has no explanation.
    """
    began = time.monotonic()
    layer = model.lens.layer(request.unit.layer, "unit.layer")
    operands = Operands(model.catalogue, layer, request.unit)
    explanation = EXPLANATIONS.get(operands.node.op_type)
    if explanation is None or (operands.part and operands.node.op_type not in others.SELECTIONS):
        raise operands.unexplained()
    image = aside.decoded(request.images, model)
    operands.values = model.lens.tensors(image, operands.names)
    result, arithmetic = explanation(operands)
    response = pb.ExplainUnitResponse(
        unit=request.unit,
        kind=layer.kind,
        result=result,
        activation=operands.activation,
        receptive_field=operands.anatomy.fields.region(layer.tensor, request.unit.row, request.unit.column),
        model=model.name,
        version=model.version,
    )
    getattr(response, _FIELDS[type(arithmetic)]).CopyFrom(arithmetic)
    response.compute_ms = (time.monotonic() - began) * 1000
    yield response
