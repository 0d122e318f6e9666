from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convlens.v1 import convlens_pb2 as pb
from convlens_server.catalogue import Layer, build_catalogue
from convlens_server.network import load_network


def test_a_layer_has_the_messages_fields():
    fields = [field.name for field in dataclasses.fields(Layer)]
    assert fields == [*(field.name for field in pb.Layer.DESCRIPTOR.fields), "tensor"]


def test_a_layer_becomes_a_message(builder, serve):
    net = builder(["N", 3, 8, 6])
    convolved = net.node("Conv", "x", net.weights(4, 3, 3, 3), name="conv", pads=[1, 1, 1, 1])
    catalogue = serve(net.model(net.head(convolved, 192))).catalogue
    for layer in catalogue.layers:
        values = dataclasses.asdict(layer)
        del values["tensor"]
        message = pb.Layer(**values)
        assert (message.name, tuple(message.shape)) == (layer.name, layer.shape)


def test_lookup(builder, serve):
    net = builder(["N", 3, 8, 6])
    convolved = net.node("Conv", "x", net.weights(4, 3, 3, 3), name="conv", pads=[1, 1, 1, 1])
    catalogue = serve(net.model(net.head(net.node("Relu", convolved, name="relu"), 192))).catalogue
    assert catalogue["relu"] is catalogue.get("relu") is catalogue.layers[1]
    assert catalogue.get("rely") is None
    with pytest.raises(KeyError):
        catalogue["rely"]
    assert list(catalogue.kinds) == ["conv", "relu", "flatten", "dense", "softmax"]


class TestKinds:
    def layers(self, builder, serve, build, shape=("N", 3, 8, 8), features=192):
        net = builder(list(shape))
        return serve(net.model(net.head(build(net), features))).catalogue.layers[:-3]

    @pytest.mark.parametrize(
        ("op_type", "kind"),
        [
            ("Relu", "relu"),
            ("Sigmoid", "sigmoid"),
            ("LeakyRelu", "leaky_relu"),
            ("HardSwish", "hard_swish"),
            ("Elu", "elu"),
            ("Softplus", "softplus"),
        ],
    )
    def test_activations(self, builder, serve, op_type, kind):
        [layer] = self.layers(builder, serve, lambda net: net.node(op_type, "x"))
        assert (layer.kind, layer.op_type, layer.name) == (kind, op_type, f"{kind}_1")

    def test_pools(self, builder, serve):
        def build(net):
            tensor = net.node("MaxPool", "x", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
            tensor = net.node("AveragePool", tensor, kernel_shape=[2, 4], strides=[2, 2], pads=[0, 1, 0, 1])
            return net.node("GlobalAveragePool", tensor)

        layers = self.layers(builder, serve, build, features=3)
        assert [layer.kind for layer in layers] == ["max_pool", "average_pool", "global_average_pool"]
        assert (layers[1].kernel, layers[1].stride, layers[1].padding) == ((2, 4), (2, 2), (0, 1, 0, 1))
        assert layers[2].shape == (3, 1, 1)

    @pytest.mark.parametrize(
        ("axes", "kind"),
        [([2, 3], "global_average_pool"), ([-1, -2], "global_average_pool"), ([1], "reduce_mean")],
    )
    @pytest.mark.parametrize("opset", [13, 18])
    def test_means(self, builder, serve, axes, kind, opset):
        net = builder(["N", 3, 8, 8], opset=opset)
        if opset < 18:
            mean = net.node("ReduceMean", "x", axes=axes)
        else:
            mean = net.node("ReduceMean", "x", net.constant(axes, np.int64))
        layers = serve(net.model(net.head(mean, 64 if kind == "reduce_mean" else 3))).catalogue.layers
        assert layers[0].kind == kind

    @pytest.mark.parametrize(("low", "high", "kind"), [(0, 6, "relu6"), (0, 1, "clip"), (-6, 6, "clip")])
    @pytest.mark.parametrize("opset", [10, 18])
    def test_clips(self, builder, serve, low, high, kind, opset):
        net = builder(["N", 3, 8, 8], opset=opset)
        if opset < 11:
            clipped = net.node("Clip", "x", min=float(low), max=float(high))
        else:
            clipped = net.node("Clip", "x", net.constant(low), net.constant(high))
        flat = net.node("Reshape", clipped, net.constant([0, -1], np.int64))
        output = net.node("Gemm", flat, net.weights(192, 2), net.weights(2))
        layers = serve(net.model(output)).catalogue.layers
        assert [layer.kind for layer in layers] == [kind, "flatten", "dense", "softmax"]

    def test_a_matrix_product_with_its_bias_is_one_layer(self, builder, serve):
        net = builder(["N", 1, 4, 4])
        flat = net.node("Flatten", "x")
        product = net.node("MatMul", flat, net.weights(16, 5), name="hidden")
        hidden = net.node("Relu", net.node("Add", net.weights(5), product, name="bias"))
        output = net.node("MatMul", hidden, net.weights(5, 3), name="output")
        opened = serve(net.model(output))
        layers = opened.catalogue.layers
        assert [layer.name for layer in layers] == ["flatten_1", "hidden", "relu_1", "output", "softmax"]
        assert [(layer.kind, layer.parameters, layer.multiply_accumulates) for layer in layers[1:4:2]] == [
            ("dense", 85, 80),
            ("dense", 15, 15),
        ]
        assert layers[2].inputs == ("hidden",)
        before, after = opened.maps(opened.images(2), "hidden", "relu_1")
        np.testing.assert_array_equal(after, np.maximum(before, 0))

    def test_batch_norm(self, builder, serve):
        def build(net):
            return net.node("BatchNormalization", "x", *[net.constant([1.0, 2.0, 3.0]) for _ in range(4)])

        [layer] = self.layers(builder, serve, build)
        assert (layer.kind, layer.parameters) == ("batch_norm", 6)

    def test_constants_are_trained_values_only_behind_weights_and_if_many(self, builder, serve):
        def build(net):
            tensor = net.node("Sub", "x", net.constant([[[0.5]], [[0.4]], [[0.3]]]))
            tensor = net.node("Conv", tensor, net.weights(3, 3, 1, 1))
            tensor = net.node("Mul", tensor, net.constant([[[0.5]], [[0.4]], [[0.3]]]))
            return net.node("Mul", tensor, net.constant(0.5))

        assert [layer.parameters for layer in self.layers(builder, serve, build)] == [0, 9, 3, 0]

    def test_split_has_a_layer_for_each_part(self, builder, serve):
        def build(net):
            left, right = net.node("Split", "x", outputs=2, axis=2, num_outputs=2, name="halves")
            return net.node("Concat", right, left, axis=2, name="swapped")

        net_layers = self.layers(builder, serve, build)
        assert [layer.name for layer in net_layers] == ["halves.0", "halves.1", "swapped"]
        assert [layer.shape for layer in net_layers] == [(3, 4, 8), (3, 4, 8), (3, 8, 8)]
        assert net_layers[2].inputs == ("halves.1", "halves.0")

    def test_shape_arithmetic_is_no_layer(self, builder, serve):
        def build(net):
            size = net.node("Shape", "x")
            count = net.node("Gather", size, net.constant([0], np.int64))
            shape = net.node("Concat", count, net.constant([-1], np.int64), axis=0)
            return net.node("Reshape", "x", shape, name="flat")

        [layer] = self.layers(builder, serve, build)
        assert (layer.name, layer.kind, layer.shape, layer.inputs) == ("flat", "flatten", (192,), ("input",))

    def test_shapes_that_only_a_run_tells(self, builder, serve):
        def build(net):
            # onnx's inference does not follow integers through divisions.
            rows = net.node("Gather", net.node("Shape", "x"), net.constant([2], np.int64))
            half = net.node("Div", rows, net.constant([2], np.int64))
            rest = net.constant([3, -1], np.int64)
            count = net.node("Gather", net.node("Shape", "x"), net.constant([0], np.int64))
            shape = net.node("Concat", count, half, rest, axis=0)
            return net.node("Relu", net.node("Reshape", "x", shape, name="folded"), name="relu")

        layers = self.layers(builder, serve, build)
        assert [(layer.name, layer.shape) for layer in layers] == [("folded", (4, 3, 16)), ("relu", (4, 3, 16))]

    def test_operators_of_other_domains(self, builder, serve):
        net = builder(["N", 3, 8, 8])
        activated = net.node("Gelu", "x", domain="com.microsoft")
        opened = serve(net.model(net.head(activated, 192)))
        assert (opened.catalogue.layers[0].kind, opened.catalogue.layers[0].shape) == ("gelu", (3, 8, 8))

    def test_images_behind_another_axis(self, builder, serve):
        """As in transformers' attention: the images move to the second axis, then are merged with the rows."""
        net = builder(["N", 3, 8, 8])
        moved = net.node("Transpose", "x", perm=[2, 0, 3, 1], name="moved")
        merged = net.node("Reshape", moved, net.constant([-1, 8, 3], np.int64), name="merged")
        activated = net.node("Relu", merged, name="activated")
        back = net.node("Reshape", activated, net.constant([8, -1, 8, 3], np.int64), name="back")
        opened = serve(net.model(net.head(net.node("Transpose", back, perm=[1, 3, 0, 2], name="unmoved"), 192)))
        assert list(opened.catalogue.names)[:4] == ["moved", "back", "unmoved", "flatten"]
        assert opened.catalogue["back"].inputs == ("moved",)
        images = opened.images(5)
        moved, back = opened.maps(images, "moved", "back")
        assert opened.catalogue["moved"].shape == moved.shape[1:] == (3, 8, 8)
        np.testing.assert_allclose(moved, images.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
        # Its rows were lost among the images, so that its channels stay last.
        assert opened.catalogue["back"].shape == (8, 8, 3)
        np.testing.assert_array_equal(back, np.maximum(moved, 0).transpose(0, 2, 3, 1))


class TestNames:
    def test_unnamed_nodes_are_numbered_by_kind(self, builder, serve):
        net = builder(["N", 1, 6, 6])
        tensor = "x"
        for _ in range(2):
            tensor = net.node("Relu", net.node("Conv", tensor, net.weights(1, 1, 1, 1)))
        layers = serve(net.model(net.head(tensor, 36))).catalogue.layers
        assert [layer.name for layer in layers[:4]] == ["conv_1", "relu_1", "conv_2", "relu_2"]

    @pytest.mark.parametrize("name", ["17", "node_Conv_3", "n4_1"])
    def test_unreadable_names(self, builder, serve, name):
        net = builder(["N", 1, 6, 6])
        convolved = net.node("Conv", "x", net.weights(1, 1, 1, 1), name=name)
        assert serve(net.model(net.head(convolved, 36))).catalogue.layers[0].name == "conv_1"

    def test_names_are_unique_and_input_is_the_image(self, builder, save):
        net = builder(["N", 1, 6, 6])
        tensor = "x"
        for name in ("input", "twin", "twin", "twin_1", "twin", ""):
            tensor = net.node("Relu", tensor, name=name)
        # onnxruntime refuses nodes of the same name, but that is for it to say.
        names = list(build_catalogue(load_network(save(net.model(net.head(tensor, 36))))).names)
        assert names[:6] == ["input_1", "twin", "twin_2", "twin_1", "twin_3", "relu_1"]

    def test_names_are_the_same_at_every_load(self, builder, serve):
        net = builder(["N", 1, 6, 6])
        model = net.model(net.head(net.node("Relu", net.node("Relu", "x"), name="a"), 36))
        assert serve(model).catalogue == serve(model).catalogue


def test_a_quantised_network(builder, serve):
    """QDQ form: weights and activations as int8 between Quantize and Dequantize nodes, which are no layers."""
    net = builder(["N", 1, 6, 6])
    zero = net.constant(0, np.int8)

    def through(tensor, scale):
        factor = net.constant(scale)
        return net.node("DequantizeLinear", net.node("QuantizeLinear", tensor, factor, zero), factor, zero)

    kernel = net.constant(net.random.integers(-127, 127, (2, 1, 3, 3)), np.int8)
    bias = net.constant([100, -50], np.int32)
    weights = net.node("DequantizeLinear", kernel, net.constant(0.01), zero)
    offsets = net.node("DequantizeLinear", bias, net.constant(0.001))
    convolved = net.node("Conv", through("x", 1 / 127), weights, offsets, name="conv")
    rectified = through(net.node("Relu", through(convolved, 0.02), name="relu"), 0.02)
    opened = serve(net.model(net.head(rectified, 32)))

    assert [layer.name for layer in opened.catalogue.layers] == ["conv", "relu", "flatten", "output", "softmax"]
    assert (opened.catalogue["conv"].parameters, opened.catalogue["conv"].inputs) == (20, ("input",))
    assert opened.catalogue["relu"].inputs == ("conv",)
    conv, relu = opened.maps(opened.images(3), "conv", "relu")
    # The activation is what is left of it after quantisation: whole multiples of the scale.
    np.testing.assert_allclose(conv, np.rint(conv / 0.02) * 0.02, atol=1e-6)
    np.testing.assert_allclose(relu, np.maximum(conv, 0), atol=0.0201)


class TestReceptiveFields:
    def seen(self, opened, name):
        """By lighting one pixel after the other: the first and last row and column that each unit sees."""
        layer = opened.catalogue[name]
        image = opened.network.manifest.input
        pixels = np.zeros((image.height * image.width, image.height, image.width, image.channels), np.uint8)
        for n in range(len(pixels)):
            pixels[n, n // image.width, n % image.width] = 255
        [maps] = opened.lens.maps(pixels, [layer])
        lit = (maps.reshape(len(maps), layer.shape[0], -1) > 0).any(1)
        return lit.reshape(image.height, image.width, *layer.shape[1:])

    def check(self, opened, name):
        layer, lit = opened.catalogue[name], self.seen(opened, name)
        for y, x in np.ndindex(*layer.shape[1:]):
            rows, columns = np.nonzero(lit[:, :, y, x].any(1))[0], np.nonzero(lit[:, :, y, x].any(0))[0]
            for n, (unit, found) in enumerate(((y, rows), (x, columns))):
                start = layer.receptive_field_start[n] + unit * layer.receptive_field_stride[n]
                end = start + layer.receptive_field[n]
                if len(found):
                    assert max(start, 0) <= found[0]
                    assert found[-1] < min(end, lit.shape[n])
                # Behind padding a unit may see less of the image than the arithmetic says.
                if start >= 0 and end <= lit.shape[n] and len(found):
                    assert (found[0], found[-1]) == (start, end - 1)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_of_any_chain_of_windows(self, builder, serve, data):
        net = builder(["N", 1, 14, 11])
        tensor, size, names = "x", np.array([14, 11]), []
        for n in range(data.draw(st.integers(1, 4))):
            kernel = [data.draw(st.integers(1, 4)) for _ in range(2)]
            # A stride longer than the kernel leaves pixels out, which no rectangle says.
            stride = [data.draw(st.integers(1, size)) for size in kernel]
            padding = [data.draw(st.integers(0, kernel[axis % 2] - 1)) for axis in range(4)]
            after = (size + np.add(padding[:2], padding[2:]) - kernel) // stride + 1
            if min(after) < 1:
                break
            attributes = {"kernel_shape": kernel, "strides": stride, "pads": padding, "name": f"layer{n}"}
            if data.draw(st.booleans()):
                tensor = net.node("Conv", tensor, net.constant(np.ones((1, 1, *kernel))), **attributes)
            else:
                tensor = net.node("AveragePool", tensor, **attributes)
            size = after
            names.append(f"layer{n}")
        if not names:
            return
        opened = serve(net.model(net.head(tensor, int(np.prod(size)))))
        for name in names:
            self.check(opened, name)

    @pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    def test_of_automatic_padding(self, builder, serve, auto_pad, stride):
        net = builder(["N", 1, 12, 9])
        kernel = net.constant(np.ones((1, 1, 4, 3)))
        tensor = net.node("Conv", "x", kernel, name="conv", auto_pad=auto_pad, strides=[stride, stride])
        pooled = net.node("GlobalAveragePool", tensor, name="pool")
        opened = serve(net.model(net.head(pooled, 1)))
        self.check(opened, "conv")
        assert opened.catalogue["pool"].receptive_field == (12, 9)
        assert opened.catalogue["pool"].receptive_field_stride == (0, 0)

    def test_of_dilation(self, builder, serve):
        net = builder(["N", 1, 12, 12])
        kernel = net.constant(np.ones((1, 1, 3, 3)))
        tensor = net.node("Conv", "x", kernel, name="conv", dilations=[2, 3], pads=[1, 0, 1, 0])
        opened = serve(net.model(net.head(tensor, 60)))
        assert opened.catalogue["conv"].receptive_field == (5, 7)
        assert opened.catalogue["conv"].dilation == (2, 3)
        self.check(opened, "conv")

    def test_branches_see_the_union(self, builder, serve):
        net = builder(["N", 1, 12, 12])
        first = net.node("Conv", "x", net.constant(np.ones((1, 1, 3, 3))), name="first", strides=[2, 2], pads=[1] * 4)
        wide = net.node("Conv", first, net.constant(np.ones((1, 1, 5, 1))), name="wide", pads=[2, 0, 2, 0])
        opened = serve(net.model(net.head(net.node("Add", wide, first, name="added"), 36)))
        assert opened.catalogue["added"].inputs == ("wide", "first")
        self.check(opened, "added")
        net = builder(["N", 1, 12, 12])
        first = net.node("Conv", "x", net.constant(np.ones((1, 1, 3, 3))), name="first", strides=[2, 2], pads=[1] * 4)
        wide = net.node("Conv", first, net.constant(np.ones((1, 1, 5, 1))), name="wide", pads=[2, 0, 2, 0])
        tall = net.node("Conv", first, net.constant(np.ones((1, 1, 1, 3))), name="tall", pads=[0, 2, 0, 0])
        joined = net.node("Concat", wide, tall, axis=1, name="joined")
        opened = serve(net.model(net.head(joined, 72)))
        layer = opened.catalogue["joined"]
        assert layer.inputs == ("wide", "tall")
        assert (layer.receptive_field, layer.receptive_field_stride) == ((11, 7), (2, 2))
        assert layer.receptive_field_start == (-5, -5)

    def test_of_slices_and_padding(self, builder, serve):
        net = builder(["N", 1, 12, 12])
        ends = net.constant([12, 12], np.int64)
        cut = net.node(
            "Slice",
            "x",
            net.constant([1, -9], np.int64),
            ends,
            net.constant([2, 3], np.int64),
            net.constant([2, 1], np.int64),
            name="cut",
        )
        padded = net.node("Pad", cut, net.constant([0, 0, 1, 2, 0, 0, 0, 1], np.int64), name="padded")
        opened = serve(net.model(net.head(padded, 84)))
        assert opened.catalogue["cut"].shape == (1, 6, 9)
        self.check(opened, "cut")
        self.check(opened, "padded")

    def test_of_channels_last_layers(self, builder, serve):
        net = builder(["N", 3, 9, 6])
        convolved = net.node("Conv", "x", net.constant(np.ones((4, 3, 3, 3))), name="conv", strides=[3, 3])
        moved = net.node("Transpose", convolved, perm=[0, 2, 3, 1], name="moved")
        scale = net.constant(np.ones(4)), net.constant(np.zeros(4))
        normed = net.node("LayerNormalization", moved, *scale, name="normed", axis=-1)
        mixed = net.node("MatMul", normed, net.constant(np.ones((4, 5))), name="mixed")
        back = net.node("Transpose", mixed, perm=[0, 3, 1, 2], name="back")
        catalogue = serve(net.model(net.head(back, 30))).catalogue
        for name in ("moved", "normed", "mixed", "back"):
            layer = catalogue[name]
            assert layer.shape == (5 if name in ("mixed", "back") else 4, 3, 2)
            assert (layer.receptive_field, layer.receptive_field_stride) == ((3, 3), (3, 3))
        assert catalogue["mixed"].multiply_accumulates == 3 * 2 * 4 * 5

    def test_squeeze_and_excitation_sees_everything(self, builder, serve):
        net = builder(["N", 3, 9, 6])
        gate = net.node("Sigmoid", net.node("GlobalAveragePool", "x"), name="gate")
        gated = net.node("Mul", "x", gate, name="gated")
        convolved = net.node("Conv", gated, net.weights(1, 3, 3, 3), name="conv")
        catalogue = serve(net.model(net.head(convolved, 28))).catalogue
        for name in ("gate", "gated", "conv", "flatten", "output"):
            layer = catalogue[name]
            seen = layer.receptive_field, layer.receptive_field_stride, layer.receptive_field_start
            assert seen == ((9, 6), (0, 0), (0, 0))


def test_the_network_is_left_as_it_was(builder, save, open_file):
    net = builder(["N", 1, 6, 6])
    path = save(net.model(net.head("x", 36)))
    before = load_network(path).model.SerializeToString(deterministic=True)
    opened = open_file(path)
    opened.lens.maps(opened.images(2), opened.catalogue.layers)
    assert opened.network.model.SerializeToString(deterministic=True) == before
