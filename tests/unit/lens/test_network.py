from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convlens.manifest import METADATA_KEY
from convlens_server.network import load_network


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def manifest(classes: int = 2, **image):
    size = {"height": 8, "width": 6, "channels": 3, **image}
    return {"labels": [f"label {n}" for n in range(classes)], "input": size}


def classifier(net, dtype=np.float32):
    """Convolution, rectifier, head, for an 8 × 6 × 3 image with channels first."""
    convolved = net.node("Conv", "x", net.weights(4, 3, 3, 3, dtype=dtype), name="conv", pads=[1, 1, 1, 1])
    return net.head(net.node("Relu", convolved, name="relu"), 4 * 8 * 6, dtype=dtype)


def test_derived_manifest(builder, serve):
    net = builder(["N", 3, 8, 6])
    network = serve(net.model(classifier(net))).network

    assert network.manifest.labels == ("class_0", "class_1")
    image = network.manifest.input
    assert (image.height, image.width, image.channels, image.value_range) == (8, 6, 3, (0.0, 1.0))
    assert (network.classes, network.fixed_batch) == (2, None)
    [value] = network.model.graph.input
    assert (value.name, value.type.tensor_type.elem_type) == (network.input_name, TensorProto.UINT8)
    outputs = [(value.name, value.type.tensor_type.elem_type) for value in network.model.graph.output]
    assert outputs == [(network.scores_name, TensorProto.FLOAT), (network.logits_name, TensorProto.FLOAT)]


def test_a_loaded_network_is_a_valid_onnx_model(builder, serve):
    net = builder(["N", 3, 8, 6])
    onnx.checker.check_model(serve(net.model(classifier(net))).network.model, full_check=True)


def test_metadata_manifest_and_the_file_that_overrides_it(builder, save):
    net = builder(["N", 3, 8, 6])
    model = net.model(classifier(net))
    helper.set_model_props(model, {METADATA_KEY: json.dumps({**manifest(), "description": "inside"})})
    assert load_network(save(model)).manifest.description == "inside"
    assert load_network(save(model, {**manifest(), "description": "beside"})).manifest.description == "beside"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "image",
    [
        {},
        {"value_range": [0, 255]},
        {"value_range": [-1, 1]},
        {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        {"value_range": [0, 255], "mean": [103.9, 116.8, 123.7]},
    ],
)
def test_preprocessing_equals_torch(builder, serve, channels_last, image):
    import torch
    from torchvision.transforms.v2.functional import normalize

    net = builder(["N", 8, 6, 3] if channels_last else ["N", 3, 8, 6])
    passed = net.node("Mul", "x", net.constant([1.0]), name="passed")
    opened = serve(net.model(net.head(passed, 144)), manifest(**image))
    images = opened.images(3)

    [maps] = opened.maps(images, "passed")

    low, high = image.get("value_range", (0, 1))
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * (high - low) + low
    expected = normalize(values, image.get("mean", [0.0] * 3), image.get("std", [1.0] * 3)).numpy()
    np.testing.assert_allclose(maps, expected, atol=1e-4 * max(1, abs(high)) / 255, rtol=1e-5)
    # In the lens channels come first, whatever the graph does.
    assert opened.catalogue["passed"].shape == (3, 8, 6)


def test_channels_last_network(builder, serve):
    first, last = builder(["N", 3, 8, 6]), builder(["N", 8, 6, 3])
    model = first.model(classifier(first))
    moved = last.node("Transpose", "x", name="to_channels_first", perm=[0, 3, 1, 2])
    convolved = last.node("Conv", moved, last.weights(4, 3, 3, 3), name="conv", pads=[1, 1, 1, 1])
    same = last.model(last.head(last.node("Relu", convolved, name="relu"), 4 * 8 * 6))
    images = (opened := serve(model)).images(2)
    np.testing.assert_allclose(serve(same).classify(images), opened.classify(images), rtol=1e-5)


def test_own_export_is_taken_as_it_is(builder, serve):
    net = builder(["N", 8, 6, 3], TensorProto.UINT8)
    net.inputs[0].name = "image"
    moved = net.node("Transpose", "image", name="preprocess/transpose", perm=[0, 3, 1, 2])
    scaled = net.node(
        "Mul", net.node("Cast", moved, name="preprocess/cast", to=1), net.constant(1 / 255), name="preprocess/scale"
    )
    convolved = net.node("Conv", scaled, net.weights(4, 3, 3, 3), name="conv_1_1")
    model = net.model(net.node("Softmax", net.head(convolved, 96), name="scores"))
    nodes = [node.name for node in model.graph.node]
    opened = serve(model, manifest(in_graph=True))

    assert opened.network.input_name == "image"
    assert [node.name for node in opened.network.model.graph.node] == nodes
    assert list(opened.catalogue.names) == ["conv_1_1", "flatten", "output", "scores"]
    assert opened.catalogue["conv_1_1"].inputs == ("input",)
    assert opened.catalogue["conv_1_1"].receptive_field == (3, 3)
    images = opened.images(1)
    scores, logits = opened.classify(images)
    np.testing.assert_allclose(scores, softmax(logits), rtol=1e-5)


def test_uint8_network_without_a_manifest(builder, serve):
    net = builder(["N", 8, 6, 3], TensorProto.UINT8)
    moved = net.node("Transpose", net.node("Cast", "x", to=1), perm=[0, 3, 1, 2])
    network = serve(net.model(net.head(moved, 144))).network
    assert network.manifest.input.in_graph
    assert network.input_name == "x"


class TestHead:
    """What stands at the end of a network becomes scores and logits."""

    def check(self, opened, logits_of):
        images = opened.images(4)
        scores, logits = opened.classify(images)
        assert scores.dtype == logits.dtype == np.float32
        np.testing.assert_allclose(scores, softmax(logits), rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(logits, logits_of(opened.maps(images, "output")[0]), rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(opened.lens.maps(images, opened.catalogue.layers[-1:])[0], scores, rtol=2e-3)

    def test_no_softmax(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        opened = serve(net.model(classifier(net)))
        assert opened.catalogue["softmax"].inputs == ("output",)
        self.check(opened, lambda output: output)

    @pytest.mark.parametrize("end", [(), ("Identity",), ("Dropout", "Identity")])
    def test_softmax(self, builder, serve, end):
        net = builder(["N", 3, 8, 6])
        tensor = net.node("Softmax", classifier(net), name="probabilities")
        for op_type in end:
            tensor = net.node(op_type, tensor)
        opened = serve(net.model(tensor))
        assert opened.catalogue.layers[-1].name == "probabilities"
        self.check(opened, lambda output: output)

    def test_log_softmax(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        opened = serve(net.model(net.node("LogSoftmax", classifier(net), name="log")))
        assert [layer.kind for layer in opened.catalogue.layers[-2:]] == ["log_softmax", "exp"]
        self.check(opened, lambda output: output)

    def test_sigmoid_is_taken_for_logits(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        opened = serve(net.model(net.node("Sigmoid", classifier(net), name="sigmoid")))
        self.check(opened, lambda output: 1 / (1 + np.exp(-output)))

    def test_softmax_over_positions_then_flattened(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        pooled = net.node("GlobalAveragePool", net.node("Conv", "x", net.weights(5, 3, 1, 1), name="output"))
        tensor = net.node("Softmax", pooled, axis=1)
        opened = serve(net.model(net.node("Reshape", tensor, net.constant([0, -1], np.int64))))
        self.check(opened, lambda output: output.mean((2, 3)))
        assert opened.network.classes == 5

    def test_softmax_of_another_name(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        convolved = net.node("Conv", "x", net.weights(4, 3, 3, 3), name="softmax", pads=[1, 1, 1, 1])
        names = serve(net.model(net.head(convolved, 192))).catalogue.names
        assert list(names) == ["softmax", "flatten", "output", "softmax_1"]

    @pytest.mark.parametrize("end", ["", "Softmax"])
    def test_float16(self, builder, serve, end):
        net = builder(["N", 3, 8, 6], TensorProto.FLOAT16)
        tensor = classifier(net, np.float16)
        opened = serve(net.model(net.node(end, tensor, name="end") if end else tensor))
        [maps] = opened.maps(opened.images(2), "relu")
        assert maps.dtype == np.float32
        self.check(opened, lambda output: output)
        reference = builder(["N", 3, 8, 6])
        wide = serve(reference.model(classifier(reference)))
        np.testing.assert_allclose(maps, wide.maps(opened.images(2), "relu")[0], rtol=1e-2, atol=1e-2)

    def test_float16_inside_float32(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        narrow = net.node("Cast", "x", to=TensorProto.FLOAT16)
        net.inputs[0].name, net.nodes[0].input[0] = "y", "y"
        net.nodes[0].output[0] = "x"
        assert narrow != "x"
        tensor = net.node("Softmax", classifier(net, np.float16))
        opened = serve(net.model(net.node("Cast", tensor, to=TensorProto.FLOAT)))
        self.check(opened, lambda output: output)


class TestBatch:
    def reshaped(self, net, rows):
        convolved = net.node("Conv", "x", net.weights(4, 3, 3, 3), name="conv", pads=[1, 1, 1, 1])
        flat = net.node("Reshape", convolved, net.constant([rows, 192], np.int64), name="flat")
        return net.model(net.node("Gemm", flat, net.weights(192, 2), name="output"))

    @pytest.mark.parametrize("batch", [1, 4])
    def test_fixed_batch_becomes_free(self, builder, serve, batch):
        net, free = builder([batch, 3, 8, 6]), builder(["N", 3, 8, 6])
        opened, reference = serve(net.model(classifier(net))), serve(free.model(classifier(free)))
        assert opened.network.fixed_batch is None
        images = opened.images(7)
        np.testing.assert_allclose(opened.classify(images), reference.classify(images))
        np.testing.assert_allclose(opened.maps(images, "relu"), reference.maps(images, "relu"))

    @pytest.mark.parametrize("batch", [1, 4])
    def test_a_batch_written_into_the_graph_stays(self, builder, serve, batch):
        net, free = builder([batch, 3, 8, 6]), builder(["N", 3, 8, 6])
        opened, reference = serve(self.reshaped(net, batch)), serve(self.reshaped(free, -1))
        assert (opened.network.fixed_batch, reference.network.fixed_batch) == (batch, None)
        assert opened.catalogue["flat"].shape == reference.catalogue["flat"].shape == (192,)
        images = opened.images(batch)
        np.testing.assert_allclose(opened.classify(images), reference.classify(images), rtol=1e-5)
        for count in (1, batch, 6):
            images = opened.images(count)
            for own, other in zip(
                opened.maps(images, "conv", "flat", "softmax"),
                reference.maps(images, "conv", "flat", "softmax"),
                strict=True,
            ):
                np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)

    def test_open_sizes_are_the_manifests(self, builder, serve):
        net = builder(["N", 3, "H", "W"])
        opened = serve(net.model(classifier(net)), manifest())
        assert opened.catalogue["relu"].shape == (4, 8, 6)
        assert opened.classify(opened.images(3))[0].shape == (3, 2)


class TestForms:
    """The same network in other forms of ONNX."""

    def test_initialisers_among_the_inputs(self, builder, serve):
        net = builder(["N", 3, 8, 6], opset=8, ir=3)
        model = net.model(classifier(net))
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        new = builder(["N", 3, 8, 6])
        opened, reference = serve(model), serve(new.model(classifier(new)))
        images = opened.images(2)
        np.testing.assert_allclose(opened.classify(images), reference.classify(images), rtol=1e-6)
        assert opened.catalogue.layers[0].parameters == 108

    def test_constant_nodes(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        model = net.model(classifier(net))
        constants = [
            helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer
        ]
        nodes = [*constants, *model.graph.node]
        model.graph.ClearField("initializer")
        inside = onnx.GraphProto(node=nodes)
        model.graph.ClearField("node")
        model.graph.node.extend(inside.node)
        new = builder(["N", 3, 8, 6])
        opened, reference = serve(model), serve(new.model(classifier(new)))
        images = opened.images(2)
        np.testing.assert_allclose(opened.classify(images), reference.classify(images), rtol=1e-6)
        assert opened.catalogue == reference.catalogue

    def test_functions_are_inlined(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        model = net.model(classifier(net))
        body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
        opsets = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("ours", "NegRelu", ["a"], ["c"], body, opsets))
        model.opset_import.append(helper.make_opsetid("ours", 1))
        node = next(node for node in model.graph.node if node.op_type == "Relu")
        node.op_type, node.domain = "NegRelu", "ours"
        assert [layer.kind for layer in serve(model).catalogue.layers][1:3] == ["relu", "neg"]

    def test_a_branch_inside_the_graph(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        convolved = net.node("Conv", "x", net.weights(4, 3, 3, 3), name="conv", pads=[1, 1, 1, 1])
        info = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        branches = {
            name: helper.make_graph([helper.make_node(op_type, [convolved], ["out"])], name, [], [info])
            for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg"))
        }
        chosen = net.node("If", net.constant(True, np.bool_), name="branch", **branches)
        opened = serve(net.model(net.head(chosen, 192)))
        convolved, branch = opened.maps(opened.images(2), "conv", "branch")
        np.testing.assert_array_equal(branch, np.maximum(convolved, 0))
        assert opened.catalogue["branch"].inputs == ("conv",)
