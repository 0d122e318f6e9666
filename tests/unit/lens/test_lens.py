from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest

from convlens_server.errors import InvalidRequest, NotFound
from convlens_server.lens import Lens


@pytest.fixture
def opened(builder, serve):
    """conv_1, relu_1, conv_2, relu_2, pool, flatten, output, softmax."""
    net = builder(["N", 3, 8, 6])
    tensor = "x"
    for n, channels in ((1, (4, 3)), (2, (5, 4))):
        kernel = net.weights(*channels, 3, 3, name=f"kernel_{n}")
        tensor = net.node("Conv", tensor, kernel, name=f"conv_{n}", pads=[1, 1, 1, 1])
        tensor = net.node("Relu", tensor, name=f"relu_{n}")
    pooled = net.node("MaxPool", tensor, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    return serve(net.model(net.head(pooled, 60)))


class TestResolve:
    def names(self, opened, layers=(), kinds=(), all_layers=False):
        return [layer.name for layer in opened.lens.resolve(layers, kinds, all_layers)]

    def test_by_name_in_the_catalogues_order_each_once(self, opened):
        assert self.names(opened, ["pool", "conv_1", "pool"]) == ["conv_1", "pool"]

    def test_by_kind(self, opened):
        assert self.names(opened, (), ["relu", "dense"]) == ["relu_1", "relu_2", "output"]

    def test_union(self, opened):
        assert self.names(opened, ["softmax", "conv_1"], ["conv"]) == ["conv_1", "conv_2", "softmax"]

    def test_all(self, opened):
        assert self.names(opened, ["pool"], ["conv"], True) == list(opened.catalogue.names)

    def test_nothing(self, opened):
        with pytest.raises(InvalidRequest, match="no layers are asked for") as caught:
            self.names(opened)
        assert caught.value.reason == "NO_LAYERS"

    def test_unknown_layer(self, opened):
        with pytest.raises(
            NotFound, match=r"layer 'conv1' is not in the model \(did you mean conv_1, conv_2"
        ) as caught:
            self.names(opened, ["pool", "conv1"])
        error = caught.value
        assert (error.reason, error.metadata, error.field) == ("LAYER_NOT_FOUND", {"layer": "conv1"}, "layers")

    def test_the_image_is_no_layer_of_its_own(self, opened):
        with pytest.raises(NotFound, match="'input' is the image as the network takes it") as failed:
            opened.lens.layer("input")
        assert failed.value.reason == "LAYER_NOT_FOUND"

    def test_a_very_long_name(self, opened):
        with pytest.raises(NotFound) as caught:
            self.names(opened, ["conv" * 100_000])
        assert len(str(caught.value)) < 400

    def test_unknown_kind_even_with_all(self, opened):
        with pytest.raises(
            NotFound, match=r"kind of layer 'maxpool' is not in the model \(did you mean max_pool"
        ) as caught:
            self.names(opened, (), ["maxpool"], True)
        error = caught.value
        assert (error.reason, error.metadata, error.field) == ("LAYER_NOT_FOUND", {"kind": "maxpool"}, "kinds")


class TestMaps:
    def test_shapes_order_and_batches(self, opened):
        images = opened.images(5)
        layers = [opened.catalogue[name] for name in ("pool", "conv_1", "softmax")]
        maps = opened.lens.maps(images, layers)
        assert [values.shape for values in maps] == [(5, *layer.shape) for layer in layers]
        assert all(values.dtype == np.float32 and values.flags.c_contiguous for values in maps)
        for n in range(5):
            for whole, single in zip(maps, opened.lens.maps(images[n : n + 1], layers), strict=True):
                np.testing.assert_allclose(whole[n : n + 1], single, rtol=1e-5, atol=1e-6)

    def test_maps_do_not_depend_on_what_else_is_asked_for(self, opened):
        images = opened.images(2)
        together = opened.lens.maps(images, opened.catalogue.layers)
        for layer, values in zip(opened.catalogue.layers, together, strict=True):
            np.testing.assert_allclose(opened.lens.maps(images, [layer])[0], values, rtol=1e-5, atol=1e-6)

    def test_a_part_has_only_what_it_needs(self, opened):
        parts = []

        def make_session(content):
            parts.append(onnx.ModelProto.FromString(content))
            return opened.make_session(content)

        lens = Lens(opened.network, opened.catalogue, make_session)
        lens.maps(opened.images(1), [opened.catalogue["relu_1"]])
        [part] = parts
        assert [node.name for node in part.graph.node][-2:] == ["conv_1", "relu_1"]
        assert "kernel_1" in [tensor.name for tensor in part.graph.initializer]
        assert "kernel_2" not in [tensor.name for tensor in part.graph.initializer]


class TestSessions:
    def test_are_made_once_for_each_set_of_layers(self, opened):
        images, made = opened.images(1), opened.sessions_made
        opened.maps(images, "conv_1", "pool")
        opened.maps(images, "pool", "conv_1")
        assert opened.sessions_made == made + 1
        opened.maps(images, "pool")
        assert opened.sessions_made == made + 2

    def test_the_one_not_asked_for_longest_goes_first(self, builder, serve):
        net = builder(["N", 1, 4, 4])
        tensor = "x"
        for n in range(4):
            tensor = net.node("Neg", tensor, name=f"layer_{n}")
        opened = serve(net.model(net.head(tensor, 16)), cache_size=2)
        images, made = opened.images(1), []
        for name in ("layer_0", "layer_1", "layer_0", "layer_2", "layer_0", "layer_1"):
            before = opened.sessions_made
            opened.maps(images, name)
            made.append(opened.sessions_made - before)
        assert made == [1, 1, 0, 1, 0, 1]

    def test_no_more_are_kept_than_said(self, builder, serve):
        import gc
        import weakref

        net = builder(["N", 1, 4, 4])
        tensor = "x"
        for n in range(6):
            tensor = net.node("Neg", tensor, name=f"layer_{n}")
        opened = serve(net.model(net.head(tensor, 16)))
        alive = weakref.WeakSet()

        def make_session(content):
            session = opened.make_session(content)
            alive.add(session)
            return session

        lens = Lens(opened.network, opened.catalogue, make_session, cache_size=3)
        for layer in opened.catalogue.layers:
            lens.maps(opened.images(1), [layer])
        gc.collect()
        assert len(alive) == 3

    def test_no_more_weights_are_kept_than_said(self, builder, serve):
        """Each layer's session has its weights and those before; of large ones the last alone is kept."""
        net = builder(["N", 1, 2, 2])
        tensor = net.node("Flatten", "x", name="flatten")
        for n, (units, taken) in enumerate([(500, 4), (500, 500), (500, 500)]):
            tensor = net.node("Gemm", tensor, net.weights(taken, units), name=f"dense_{n}")
        opened = serve(net.model(net.node("Gemm", tensor, net.weights(500, 2), name="output")), cache_bytes=2_100_000)
        images, made = opened.images(1), []
        # Their files have 0, 8, 1,008 and 2,008 kilobytes.
        for name in ("dense_0", "dense_1", "dense_0", "flatten", "dense_2", "flatten", "dense_2", "dense_1", "dense_2"):
            before = opened.sessions_made
            opened.maps(images, name)
            made.append(opened.sessions_made - before)
        assert made == [1, 1, 0, 1, 1, 0, 0, 1, 1]

    def test_many_threads_make_one(self, opened):
        made, begun = [], threading.Event()

        def make_session(content):
            made.append(content)
            begun.wait(5)
            return opened.make_session(content)

        lens = Lens(opened.network, opened.catalogue, make_session)
        images, layer = opened.images(3), opened.catalogue["pool"]
        answers = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append((n, lens.maps(images[n % 3 : n % 3 + 1], [layer])[0])))
            for n in range(9)
        ]
        for thread in threads:
            thread.start()
        begun.set()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert len(answers) == 9
        [expected] = opened.lens.maps(images, [layer])
        for n, values in answers:
            np.testing.assert_allclose(values[0], expected[n % 3], rtol=1e-5, atol=1e-6)

    def test_others_are_not_kept_waiting(self, opened):
        """While one set's session is being built, another set is answered."""
        building, release = threading.Event(), threading.Event()

        def make_session(content):
            if any(node.name == "conv_2" for node in onnx.ModelProto.FromString(content).graph.node):
                building.set()
                assert release.wait(10)
            return opened.make_session(content)

        lens = Lens(opened.network, opened.catalogue, make_session)
        images = opened.images(1)
        slow = threading.Thread(target=lambda: lens.maps(images, [opened.catalogue["conv_2"]]))
        slow.start()
        assert building.wait(10)
        [maps] = lens.maps(images, [opened.catalogue["conv_1"]])
        assert maps.shape == (1, 4, 8, 6)
        release.set()
        slow.join()

    def test_a_failure_is_told_and_the_next_call_tries_again(self, opened):
        failures = [RuntimeError("out of memory")]

        def make_session(content):
            if failures:
                raise failures.pop()
            return opened.make_session(content)

        lens = Lens(opened.network, opened.catalogue, make_session)
        layers = [opened.catalogue["pool"]]
        with pytest.raises(RuntimeError, match="out of memory"):
            lens.maps(opened.images(1), layers)
        assert lens.maps(opened.images(1), layers)[0].shape == (1, 5, 4, 3)


class TestTheImage:
    def test_comes_first_and_is_what_the_network_takes(self, builder, serve):
        net = builder(["N", 3, 8, 6])
        conv = net.node("Conv", "x", net.weights(2, 3, 3, 3), name="conv")
        size = {"height": 8, "width": 6, "channels": 3, "mean": [0.5, 0.25, 0.125], "std": [0.5, 2, 4]}
        opened = serve(net.model(net.head(conv, 48)), {"labels": ["one", "two"], "input": size})
        images = opened.images(2)

        layers = opened.lens.resolve(["conv", "input"], (), False)

        assert [(layer.name, layer.kind, layer.shape) for layer in layers] == [
            ("input", "input", (3, 8, 6)), ("conv", "conv", (2, 6, 4))
        ]  # fmt: skip
        mean, std = (np.array(size[name])[:, None, None] for name in ("mean", "std"))
        expected = (images.transpose(0, 3, 1, 2) / 255 - mean) / std
        np.testing.assert_allclose(opened.lens.maps(images, layers)[0], expected, rtol=1e-5, atol=1e-6)

    def test_of_a_file_that_takes_channels_last_it_has_channels_first(self, builder, serve):
        net = builder(["N", 8, 6, 3])
        turned = net.node("Transpose", "x", perm=[0, 3, 1, 2], name="turned")
        opened = serve(net.model(net.head(turned, 144)))
        images = opened.images(1)
        [image] = opened.lens.maps(images, opened.lens.resolve(["input"], (), False))
        np.testing.assert_allclose(image, images.transpose(0, 3, 1, 2) / 255, rtol=1e-6)

    def test_is_not_among_all_layers(self, opened):
        assert "input" not in [layer.name for layer in opened.lens.resolve((), (), True)]
        with pytest.raises(NotFound):
            opened.lens.layer("input")


class TestTensors:
    def test_of_any_kind(self, builder, serve):
        net = builder(["N", 1, 2, 2])
        quantised = net.constant([[1, -2], [3, 4], [0, 0], [5, 6]], np.int8)
        weights = net.node("DequantizeLinear", quantised, net.constant(0.5))
        flat = net.node("Flatten", "x", name="flatten")
        product = net.node("MatMul", flat, weights, name="dense")
        opened = serve(net.model(product))
        image = opened.images(1)

        values = opened.lens.tensors(image, {flat, weights, quantised, opened.network.input_name})

        np.testing.assert_array_equal(values[opened.network.input_name], image)
        np.testing.assert_allclose(values[flat], image.reshape(1, 4) / 255, rtol=1e-6)
        assert values[quantised].dtype == np.int8
        assert opened.lens.constants([weights])[weights].tolist() == [[0.5, -1], [1.5, 2], [0, 0], [2.5, 3]]

    def test_of_one_image_where_the_file_takes_more(self, builder, serve):
        net = builder([3, 1, 2, 2])
        # Something that merges the images, so that their number stays fixed.
        merged = net.node("Reshape", "x", net.constant([12], np.int64))
        flat = net.node("Reshape", merged, net.constant([3, 4], np.int64), name="flat")
        opened = serve(net.model(net.node("Gemm", flat, net.weights(4, 2), name="output")))
        image = opened.images(1)
        values = opened.lens.tensors(image, {flat})[flat]
        np.testing.assert_allclose(values, [*(image.reshape(1, 4) / 255), [0] * 4, [0] * 4], rtol=1e-6)

    def test_weights_are_read_once_as_long_as_there_is_room(self, builder, serve):
        net = builder(["N", 1, 2, 2])
        flat = net.node("Flatten", "x", name="flatten")
        first, second = net.weights(4, 100, name="first"), net.weights(100, 2, name="second")
        dense = net.node("Gemm", flat, first, name="dense")
        opened = serve(net.model(net.node("Gemm", dense, second, name="output")), constant_bytes=2000)
        own = {name: opened.lens.constants([name])[name] for name in (first, second)}
        assert opened.lens.constants([second])[second] is own[second]
        # 1,600 and 800 bytes: the first one has made room.
        again = opened.lens.constants([first])[first]
        assert again is not own[first]
        np.testing.assert_array_equal(again, own[first])

    def test_further_ones_of_the_same_tensors_need_no_session(self, opened):
        names = {opened.catalogue["conv_1"].tensor, opened.catalogue["relu_1"].tensor, "kernel_1"}
        opened.lens.tensors(opened.images(1), names)
        made = opened.sessions_made
        opened.lens.tensors(opened.images(1, seed=1), names)
        assert opened.sessions_made == made
