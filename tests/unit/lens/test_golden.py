"""The lecture's own examples, by hand-checked numbers, through a real file, session and lens."""

from __future__ import annotations

import numpy as np

MANIFEST = {"labels": ["one", "two"], "input": {"height": 5, "width": 5, "channels": 1, "value_range": [0, 255]}}


def test_convolution(builder, serve):
    net = builder(["N", 1, 5, 5])
    kernel = net.constant([[[[1, 0, 1], [1, 1, 1], [0, 0, 1]]]])
    convolved = net.node("Conv", "x", kernel, name="conv")
    opened = serve(net.model(net.head(convolved, 9)), MANIFEST)
    image = np.array([[0, 1, 1, 0, 1]] * 5, np.uint8).reshape(1, 5, 5, 1)

    [maps] = opened.maps(image, "conv")

    assert maps.tolist() == [[[[4, 3, 5]] * 3]]


def test_max_pooling(builder, serve):
    net = builder(["N", 1, 6, 6])
    pooled = net.node("MaxPool", "x", name="pool", kernel_shape=[2, 2], strides=[2, 2])
    size = {"height": 6, "width": 6, "channels": 1, "value_range": [0, 255]}
    opened = serve(net.model(net.head(pooled, 9)), {"labels": ["one", "two"], "input": size})
    rows = "4 8 2 1 1 3 / 7 1 1 2 2 6 / 2 2 3 8 1 9 / 2 2 6 2 8 4 / 3 2 1 2 1 8 / 1 1 1 3 6 1"
    image = np.array([row.split() for row in rows.split("/")], np.uint8).reshape(1, 6, 6, 1)

    [maps] = opened.maps(image, "pool")

    assert maps.tolist() == [[[[8, 2, 6], [2, 8, 9], [3, 3, 8]]]]


def lecture_cnn(builder):
    net = builder(["N", 1, 28, 28])

    def layers(tensor, name, op_type, *weights, **attributes):
        return net.node("Relu", net.node(op_type, tensor, *weights, name=name, **attributes), name=f"relu_{name}")

    tensor = layers("x", "conv_1", "Conv", net.weights(32, 1, 3, 3), net.weights(32))
    tensor = layers(tensor, "conv_2", "Conv", net.weights(64, 32, 3, 3), net.weights(64))
    tensor = net.node("MaxPool", tensor, name="max_pool", kernel_shape=[2, 2], strides=[2, 2])
    tensor = net.node("Flatten", net.node("Dropout", tensor, name="dropout"), name="flatten")
    tensor = layers(tensor, "dense_1", "Gemm", net.weights(128, 9216), net.weights(128), transB=1)
    tensor = net.node("Gemm", tensor, net.weights(128, 10), net.weights(10), name="dense_2")
    return net.model(net.node("Softmax", tensor, name="scores", axis=1))


def test_catalogue_of_the_lecture_network(builder, serve):
    catalogue = serve(lecture_cnn(builder)).catalogue

    rows = [(layer.name, layer.kind, layer.shape, layer.parameters) for layer in catalogue.layers]
    assert rows == [
        ("conv_1", "conv", (32, 26, 26), 320),
        ("relu_conv_1", "relu", (32, 26, 26), 0),
        ("conv_2", "conv", (64, 24, 24), 18_496),
        ("relu_conv_2", "relu", (64, 24, 24), 0),
        ("max_pool", "max_pool", (64, 12, 12), 0),
        ("flatten", "flatten", (9216,), 0),
        ("dense_1", "dense", (128,), 1_179_776),
        ("relu_dense_1", "relu", (128,), 0),
        ("dense_2", "dense", (10,), 1_290),
        ("scores", "softmax", (10,), 0),
    ]
    assert catalogue.parameters == 1_199_882
    by_hand = 26 * 26 * 32 * 9 + 24 * 24 * 64 * 9 * 32 + 9216 * 128 + 128 * 10
    assert catalogue.multiply_accumulates == by_hand
    assert catalogue["conv_1"].inputs == ("input",)
    assert catalogue["dense_1"].inputs == ("flatten",)
    assert (catalogue["conv_1"].kernel, catalogue["conv_1"].stride, catalogue["conv_1"].groups) == ((3, 3), (1, 1), 1)
    assert catalogue["conv_2"].receptive_field == (5, 5)
    assert catalogue["max_pool"].receptive_field == (6, 6)
    assert catalogue["max_pool"].receptive_field_stride == (2, 2)
    assert catalogue["dense_1"].receptive_field == (28, 28)


def test_the_lecture_networks_layers_follow_from_each_other(builder, serve):
    opened = serve(lecture_cnn(builder))
    images = opened.images(3)
    scores, logits = opened.classify(images)
    maps = dict(zip(opened.catalogue.names, opened.lens.maps(images, opened.catalogue.layers), strict=True))

    np.testing.assert_allclose(maps["relu_conv_1"], np.maximum(maps["conv_1"], 0))
    windows = maps["relu_conv_2"].reshape(3, 64, 12, 2, 12, 2)
    np.testing.assert_array_equal(maps["max_pool"], windows.max((3, 5)))
    np.testing.assert_array_equal(maps["flatten"], maps["max_pool"].reshape(3, -1))
    np.testing.assert_allclose(maps["dense_2"], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(maps["scores"], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
