"""The calls that look into a network: what is asked for, and what is made of the answers."""

from __future__ import annotations

import numpy as np
import pytest

import convlens
from convlens.v1 import convlens_pb2 as pb
from unit.client import lens_messages as messages

FILE = pb.Images(encoded=pb.EncodedImages(files=[b"1"]))
MODEL = {"model": "m", "version": 2}


def asked(fake):
    return [request for _, request in fake.calls]


def test_samples(client, fake):
    fake.expect("GetSamples", pb.GetSamplesResponse(samples=[pb.Sample(name="0", file=b"x")]))
    assert client.samples(**MODEL) == [convlens.Sample("0", b"x")]
    assert asked(fake) == [pb.GetSamplesRequest(**MODEL)]


def test_graph(client, fake):
    fake.expect("GetGraph", messages.graph())
    graph = client.graph(**MODEL)
    assert asked(fake) == [pb.GetGraphRequest(**MODEL)]
    (layer,) = graph.layers
    assert (layer.layer.name, layer.column, layer.connections, layer.dense_connections) == ("conv_1", 1, 162, 450)
    assert (layer.units, layer.input_units) == (18, 25)
    assert graph.edges == (("input", "conv_1"),)
    assert graph.blocks == (convlens.GraphBlock("conv", ("conv_1",), ""),)
    assert (graph.columns, graph.model, graph.version) == (2, "m", 2)


@pytest.mark.parametrize("size", [7, 1 << 20])
def test_kernels(client, fake, rng, size):
    weights = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    fake.expect("GetKernels", messages.kernels(weights, size=size, bias=[1, 2, 3, 4], channels=[7, 5, 3, 1]))
    kernels = client.kernels("conv_1", **MODEL, channels=[7, 5, 3, 1], dtype="float16")
    assert asked(fake) == [
        pb.GetKernelsRequest(**MODEL, layer="conv_1", channels=[7, 5, 3, 1], value_type=pb.VALUE_TYPE_FLOAT16)
    ]
    np.testing.assert_array_equal(kernels.weights, weights)
    np.testing.assert_array_equal(kernels.bias, [1, 2, 3, 4])
    assert (kernels.channels, kernels.groups, kernels.kind) == ((7, 5, 3, 1), 1, "conv")


def test_kernels_as_uint8_without_biases(client, fake, rng):
    values = rng.integers(0, 256, (3, 5), np.uint8)
    answer = messages.kernels(values, value_type=pb.VALUE_TYPE_UINT8, scale=[1, 0.5, 0], offset=[-1, 0, 2])
    fake.expect("GetKernels", answer)
    kernels = client.kernels("dense_1", dtype="uint8")
    scale, offset = np.array([[1], [0.5], [0]]), np.array([[-1], [0], [2]])
    np.testing.assert_allclose(kernels.weights, offset + scale * values)
    assert kernels.bias is None
    assert kernels.channels == (0, 1, 2)


def _broken_kernels():
    whole = messages.kernels(np.zeros((2, 3), np.float32), size=8)
    return {"none": [], "incomplete": whole[:-1], "two": whole * 2}


@pytest.mark.parametrize("answer", _broken_kernels().values(), ids=_broken_kernels())
def test_broken_kernels(client, fake, answer):
    fake.expect("GetKernels", answer)
    with pytest.raises(convlens.ServerError, match="breaks the contract"):
        client.kernels("a")


def test_explain_asks_for_the_unit(client, fake):
    fake.expect("ExplainUnit", messages.explained(**messages.ARITHMETIC["max"]))
    unit = client.explain(b"1", "a", 3, 1, 2, **MODEL)
    wanted = pb.Unit(layer="a", channel=3, row=1, column=2)
    assert asked(fake) == [pb.ExplainUnitRequest(**MODEL, images=FILE, unit=wanted)]
    assert (unit.layer, unit.channel, unit.row, unit.column, unit.kind) == ("a", 3, 1, 2, "conv")
    assert (unit.result, unit.activation, unit.compute_ms) == (4.5, 4.5, 1.5)
    assert unit.receptive_field == convlens.Region(-1, 0, 3, 3)
    assert (unit.model, unit.version) == ("m", 2)


@pytest.mark.parametrize("name", messages.ARITHMETIC)
def test_every_arithmetic_is_a_line(client, fake, name):
    fake.expect("ExplainUnit", messages.explained(**messages.ARITHMETIC[name]))
    unit = client.explain(b"1", "a", 3)
    assert str(unit.arithmetic) == messages.TEXTS[name]
    assert str(unit) == f"a[3, 1, 2] = {messages.TEXTS[name]} = 4.5"


def test_a_weighted_sum(client, fake):
    fake.expect("ExplainUnit", messages.explained(**messages.ARITHMETIC["wide_weighted_sum"]))
    arithmetic = client.explain(b"1", "a", 3).arithmetic
    assert isinstance(arithmetic, convlens.WeightedSum)
    assert arithmetic.patch.values.shape == arithmetic.weights.shape == arithmetic.products.shape == (6, 3, 3)
    np.testing.assert_array_equal(arithmetic.products, arithmetic.patch.values * arithmetic.weights)
    np.testing.assert_array_equal(arithmetic.channel_sums, [4] * 6)
    assert (arithmetic.sum, arithmetic.bias, arithmetic.largest) == (24, -0.5, (2, 4, 5, 8))
    assert (arithmetic.patch.layer, arithmetic.patch.first, arithmetic.patch.step) == ("input", (0, 0, 0), (1, 1))


def test_the_logarithm_of_a_softmax(client, fake):
    answer = messages.explained(**messages.ARITHMETIC["softmax"])
    answer.kind, answer.result = "log_softmax", -0.1269
    fake.expect("ExplainUnit", answer)
    assert str(client.explain(b"1", "a", 3)) == "a[3, 1, 2] = log(exp(3 − 3) ÷ Σ exp = 1 ÷ 1.135) = −0.1269"


def _broken_explanations():
    patch = messages.patch([[[1, 2]]])
    short = messages.patch([[[1, 2]]])
    short.shape[2] = 3
    return {
        "no arithmetic": {},
        "no patch": {"selection": pb.Selection()},
        "a patch that is too short": {"selection": pb.Selection(patch=short)},
        "weights missing": {"weighted_sum": pb.WeightedSum(patch=patch, weights=[1], products=[1, 2])},
        "largest outside": {
            "weighted_sum": pb.WeightedSum(patch=patch, weights=[1, 1], products=[1, 2], largest=[2])
        },
        "argmax outside": {"pooling": pb.Pooling(patch=patch, argmax=2)},
        "index outside": {"softmax": pb.Softmax(patch=patch, exponentials=[1, 1], index=2)},
        "exponentials missing": {"softmax": pb.Softmax(patch=patch, exponentials=[1])},
    }  # fmt: skip


@pytest.mark.parametrize("arithmetic", _broken_explanations().values(), ids=_broken_explanations())
def test_broken_explanations(client, fake, arithmetic):
    fake.expect("ExplainUnit", messages.explained(**arithmetic))
    with pytest.raises(convlens.ServerError, match="breaks the contract"):
        client.explain(b"1", "a", 0)


def test_attribute(client, fake):
    overlay = np.arange(24, dtype=np.uint8)
    fake.expect("Attribute", messages.attributed(), messages.attributed(
        overlay=overlay.tobytes(), method=pb.ATTRIBUTION_METHOD_GRAD_CAM, layer="conv_1"
    ))  # fmt: skip
    plain = client.attribute(b"1")
    full = client.attribute(
        b"1", **MODEL, method="grad_cam", class_index=0, layer="conv_1", window=3, stride=2, overlay=True
    )
    assert asked(fake) == [
        pb.AttributeRequest(images=FILE, method=pb.ATTRIBUTION_METHOD_OCCLUSION),
        pb.AttributeRequest(
            **MODEL, images=FILE, method=pb.ATTRIBUTION_METHOD_GRAD_CAM, class_index=0, layer="conv_1", window=3,
            stride=2, include_overlay=True,
        ),
    ]  # fmt: skip
    np.testing.assert_array_equal(plain.map, np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3))
    assert plain.overlay is None
    assert (plain.method, plain.layer, plain.images, plain.compute_ms) == ("occlusion", "", 40, 3.5)
    assert plain.prediction == convlens.Prediction("<koala>", 1, 0.75)
    np.testing.assert_array_equal(full.overlay, overlay.reshape(2, 3, 4))
    assert (full.method, full.layer) == ("grad_cam", "conv_1")


@pytest.mark.parametrize("fields", [{"height": 3}, {"overlay": b"123"}])
def test_broken_attributions(client, fake, fields):
    fake.expect("Attribute", messages.attributed(**fields))
    with pytest.raises(convlens.ServerError, match="breaks the contract"):
        client.attribute(b"1")


def test_maximizing(client, fake):
    fake.expect("MaximizingImages", messages.maximizing(), messages.maximizing())
    told = []
    found = client.maximizing(
        "conv_1", **MODEL, channels=[5, 0], dataset="photos", count=3, images=True,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert client.maximizing("conv_1")[0].channel == 5
    assert asked(fake) == [
        pb.MaximizingImagesRequest(
            **MODEL, layer="conv_1", channels=[5, 0], dataset="photos", count=3, include_images=True
        ),
        pb.MaximizingImagesRequest(layer="conv_1"),
    ]
    assert told == [(1, 2), (2, 2)]
    first, second = found
    assert (first.layer, first.channel, first.dataset, first.model, first.version) == ("conv_1", 5, "photos", "m", 2)
    (image,) = first.images
    assert (image.file, image.activation, image.row, image.column) == ("a/b.png", 2.5, 1, 2)
    assert image.receptive_field == convlens.Region(-1, 0, 3, 3)
    assert image.image == messages.png(8)
    assert (second.channel, second.images) == (0, ())


def test_compare_two_images(client, fake, rng):
    values = rng.normal(size=(1, 2, 3, 3)).astype("<f4")
    data = values.tobytes()
    head = {"shape": values.shape, "value_type": pb.VALUE_TYPE_FLOAT32, "total_bytes": len(data)}
    fake.expect("Compare", [
        messages.compared(data=data[:40], **head),
        pb.CompareResponse(layer="conv_1", byte_offset=40, data=data[40:]),
        messages.compared("relu_1", cka=0.25),
    ])  # fmt: skip
    conv, relu = client.compare(b"1", b"2", **MODEL, layers="conv_1", differences=True, dtype="float32")
    (request,) = asked(fake)
    second = pb.CompareSide(**MODEL, images=pb.Images(encoded=pb.EncodedImages(files=[b"2"])))
    assert request == pb.CompareRequest(
        first=pb.CompareSide(**MODEL, images=FILE), second=second, layers=["conv_1"], include_differences=True,
        value_type=pb.VALUE_TYPE_FLOAT32,
    )  # fmt: skip
    np.testing.assert_array_equal(conv.difference, values[0])
    assert (conv.layer, conv.kind, conv.cka, conv.models) == ("conv_1", "conv", None, (("m", 1), ("n", 2)))
    assert (conv.cosine.tolist(), conv.relative_difference.tolist()) == ([0.5], [1.5])
    assert (relu.difference, relu.cka) == (None, 0.25)


@pytest.mark.parametrize(
    ("arguments", "second"),
    [
        ({"other_version": 3}, {"model": "m", "version": 3}),
        ({"other_model": "n"}, {"model": "n", "version": 0}),
        ({"other_model": "n", "other_version": 3}, {"model": "n", "version": 3}),
    ],
)
def test_compare_models_and_versions(client, fake, arguments, second):
    fake.expect("Compare", [])
    assert client.compare([b"1"], **MODEL, **arguments) == []
    assert asked(fake)[0].second == pb.CompareSide(**second)


@pytest.mark.parametrize("fields", [{"relative_difference": []}, {"models": []}, {"cosine": []}])
def test_broken_comparisons(client, fake, fields):
    answer = messages.compared()
    for name in fields:
        answer.ClearField(name)
    fake.expect("Compare", [answer])
    with pytest.raises(convlens.ServerError, match="breaks the contract"):
        client.compare(b"1", b"2")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda client: client.explain([b"1"], "a", 0), "one image is taken here"),
        (lambda client: client.explain(b"1", "a", -1), "channel is -1"),
        (lambda client: client.explain(b"1", 3, 0), "layer is 3, but must be a string"),
        (lambda client: client.attribute(b"1", method="magic"), "method is 'magic', but must be one of occlusion,"),
        (lambda client: client.attribute(b"1", window=0), "window is 0"),
        (lambda client: client.compare(b"1"), "nothing to compare with: give other_images, other_model or other_ver"),
        (lambda client: client.kernels("a", dtype="int8"), "dtype is 'int8'"),
        (lambda client: client.maximizing("a", count=0), "count is 0"),
    ],
)
def test_wrong_arguments_are_refused_before_any_call(client, call, text):
    with pytest.raises(convlens.InvalidRequest, match=text):
        call(client)
