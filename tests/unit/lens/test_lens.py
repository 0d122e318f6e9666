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
