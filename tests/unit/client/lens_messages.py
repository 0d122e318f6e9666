"""Answers of a server about a network's inside, small and made by hand."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from convlens.v1 import convlens_pb2 as pb


def png(side=4, value=100):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((side, side), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def patch(values, layer="input", first=(0, 0, 0)):
    values = np.asarray(values, np.float32)
    channel, row, column = first
    return pb.Patch(
        layer=layer, shape=values.shape, first_channel=channel, first_row=row, first_column=column, step=[1, 1],
        values=values.ravel(),
    )  # fmt: skip


def explained(**arithmetic):
    return pb.ExplainUnitResponse(
        unit=pb.Unit(layer="a", channel=3, row=1, column=2), kind="conv", result=4.5, activation=4.5, model="m",
        version=2, receptive_field=pb.Region(top=-1, left=0, height=3, width=3), compute_ms=1.5, **arithmetic,
    )  # fmt: skip


def weighted_sum(shape=(1, 3, 3), bias=0.5):
    # The lecture's: rows of 0 1 1, kernel 1 0 1 / 1 1 1 / 0 0 1.
    values = np.broadcast_to(np.array([0, 1, 1], np.float32), shape)
    weights = np.broadcast_to(np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1]], np.float32), shape)
    products = values * weights
    return pb.WeightedSum(
        patch=patch(values), weights=weights.ravel(), products=products.ravel(), channel_sums=products.sum((1, 2)),
        sum=products.sum(), bias=bias, largest=[2, 4, 5, 8],
    )  # fmt: skip


def dense(units=50):
    values = np.linspace(-1, 1, units, dtype=np.float32)
    order = np.argsort(-np.abs(values), kind="stable")[:20]
    return pb.WeightedSum(
        patch=patch(values[:, None, None], "flatten"), weights=[2.0] * units, products=2 * values,
        channel_sums=2.0 * values, sum=2 * values.sum(), bias=-0.25, largest=order,
    )  # fmt: skip


ARITHMETIC = {
    "weighted_sum": {"weighted_sum": weighted_sum()},
    "wide_weighted_sum": {"weighted_sum": weighted_sum((6, 3, 3), -0.5)},
    "dense": {"weighted_sum": dense()},
    "bias_alone": {"weighted_sum": pb.WeightedSum(patch=patch(np.zeros((3, 0, 0))), channel_sums=[0.0] * 3, bias=4.5)},
    "max": {"pooling": pb.Pooling(patch=patch([[[4, 8], [7, -np.inf]]]), argmax=1)},
    "mean": {"pooling": pb.Pooling(patch=patch(np.ones((1, 7, 7))), sum=49, divisor=49)},
    "function": {"function": pb.Function(patch=patch([[[-2]]]), formula="min(max(x, min), max)",
                                         parameters={"min": 0, "max": 6})},
    "elementwise": {"elementwise": pb.Elementwise(patches=[patch([[[0.25]]], "b"), patch([[[-1]]], "")],
                                                  operation="+")},
    "selection": {"selection": pb.Selection(patch=patch([[[7]]], "b", (2, 3, 4)))},
    "softmax": {"softmax": pb.Softmax(patch=patch([[[1]], [[3]]], "output"), exponentials=[np.exp(-2), 1],
                                      sum=1 + np.exp(-2), index=1)},
}  # fmt: skip

TEXTS = {
    "weighted_sum": "0·1 + 1·0 + 1·1 + 0·1 + 1·1 + 1·1 + 0·0 + 1·0 + 1·1 + 0.5",
    "wide_weighted_sum": "(Σ of 54 values × weights) + bias = 24 − 0.5",
    "dense": "(Σ of 50 values × weights) + bias = 0 − 0.25",
    "bias_alone": "0 + 4.5",
    "max": "max(4, 8, 7, −∞)",
    "mean": "mean(1, 1, 1, 1, 1, 1, 1, 1, 1, …) = 49 ÷ 49",
    "function": "min(max(x, min), max) with x = −2, max = 6, min = 0",
    "elementwise": "0.25 + (−1)",
    "selection": "b[2, 3, 4]",
    "softmax": "exp(3 − 3) ÷ Σ exp = 1 ÷ 1.135",
}


def attributed(**fields):
    values = np.linspace(-1, 1, 6, dtype="<f4")
    answer = pb.AttributeResponse(
        map=values.tobytes(), height=2, width=3, method=pb.ATTRIBUTION_METHOD_OCCLUSION,
        prediction=pb.Prediction(label="<koala>", index=1, score=0.75), images=40, model="m", version=2, compute_ms=3.5,
    )  # fmt: skip
    answer.MergeFrom(pb.AttributeResponse(**fields))
    return answer


def kernels(weights, layer="conv_1", value_type=pb.VALUE_TYPE_FLOAT32, size=1 << 20, **head):
    data = weights.tobytes()
    messages = [
        pb.GetKernelsResponse(layer=layer, byte_offset=start, data=data[start : start + size])
        for start in range(0, len(data), size)
    ]
    messages[0].MergeFrom(
        pb.GetKernelsResponse(
            kind="conv", shape=weights.shape, value_type=value_type, total_bytes=len(data), model="m", version=2,
            groups=1, **head,
        )
    )  # fmt: skip
    return messages


def compared(layer="conv_1", **fields):
    models = [pb.ModelRef(model="m", version=1), pb.ModelRef(model="n", version=2)]
    answer = pb.CompareResponse(layer=layer, kind="conv", cosine=[0.5], relative_difference=[1.5], models=models)
    answer.MergeFrom(pb.CompareResponse(**fields))
    return answer


def graph():
    layer = pb.Layer(name="conv_1", kind="conv", op_type="Conv", inputs=["input"], shape=[2, 3, 3])
    return pb.GetGraphResponse(
        layers=[pb.GraphLayer(layer=layer, column=1, lane=0, units=18, input_units=25, connections=162,
                              dense_connections=450)],
        edges=[pb.GraphEdge(source="input", target="conv_1")],
        blocks=[pb.GraphBlock(name="conv", layers=["conv_1"])], columns=2, model="m", version=2,
    )  # fmt: skip


def maximizing():
    field = pb.Region(top=-1, height=3, width=3)
    image = pb.MaximizingImage(file="a/b.png", activation=2.5, row=1, column=2, image=png(8), receptive_field=field)
    head = {"model": "m", "version": 2, "layer": "conv_1", "dataset": "photos"}
    return [
        pb.MaximizingImagesResponse(progress=pb.MaximizingProgress(done=1, total=2, skipped=1), **head),
        pb.MaximizingImagesResponse(progress=pb.MaximizingProgress(done=2, total=2), **head),
        pb.MaximizingImagesResponse(channel=pb.MaximizingChannel(channel=5, images=[image]), **head),
        pb.MaximizingImagesResponse(channel=pb.MaximizingChannel(channel=0), **head),
    ]
