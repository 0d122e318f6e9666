"""Every file that cannot be served is refused with a text that names it, what is wrong and the cure."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from convlens.manifest import METADATA_KEY
from convlens_server.catalogue import build_catalogue
from convlens_server.errors import ModelError
from convlens_server.network import load_network


def classifier(builder, shape=("N", 1, 6, 6), elem_type=TensorProto.FLOAT):
    net = builder(shape, elem_type)
    kernel = net.weights(2, 1, 3, 3, name="kernel")
    pooled = net.node("MaxPool", net.node("Conv", "x", kernel), kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.head(pooled, 8, 3))


def manifest(labels=3, **image):
    size = {"height": 6, "width": 6, "channels": 1, **image}
    return {"labels": [str(n) for n in range(labels)], "input": size}


def refused(path, *parts):
    with pytest.raises(ModelError) as caught:
        load_network(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    for part in parts:
        assert part in text
    assert "\n" not in text


class TestFiles:
    def test_missing(self, tmp_path):
        refused(tmp_path / "1" / "model.onnx", "No such file", "must hold model.onnx")

    def test_a_folder(self, tmp_path):
        (tmp_path / "model.onnx").mkdir()
        refused(tmp_path / "model.onnx", "cannot be read")

    def test_empty(self, save):
        refused(save(b""), "empty", "export or copy it again")

    @pytest.mark.parametrize("content", [b"hello, this is no model", b"\x00" * 100, b"\x89PNG\r\n\x1a\n" * 50, b"{}"])
    def test_not_onnx(self, save, content):
        refused(save(content), "not an ONNX model", "export or copy it again")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, builder, save, share):
        content = classifier(builder).SerializeToString()
        refused(save(content[: int(len(content) * share)]), "export or copy it again")

    def test_a_node_without_a_source(self, builder, save):
        model = classifier(builder)
        model.graph.node[1].input[0] = "nowhere"
        refused(save(model), "'nowhere'", "export it again")

    def test_an_output_without_a_source(self, builder, save):
        model = classifier(builder)
        model.graph.output[0].name = "nowhere"
        refused(save(model), "'nowhere'", "export it again")

    def test_an_attribute_of_the_wrong_type(self, builder, save):
        model = classifier(builder)
        model.graph.node[1].attribute[0].CopyFrom(helper.make_attribute("kernel_shape", "two"))
        refused(save(model), "malformed", "export it again")


class TestNotAClassifier:
    def test_two_inputs(self, builder, save):
        model = classifier(builder)
        model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
        refused(save(model), "2 inputs (x, mask)", "image classifier has one")

    @pytest.mark.parametrize("shape", [["N", 36], ["N", 1, 36], ["N", 1, 1, 6, 6], [], None])
    def test_not_four_dimensions(self, builder, save, shape):
        model = classifier(builder)
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
        refused(save(model), "input 'x'", "four dimensions")

    @pytest.mark.parametrize("shape", [["N", 2, 6, 6], ["N", 6, 6, 4], ["N", "C", "H", "W"]])
    def test_channels(self, builder, save, shape):
        refused(save(classifier(builder, shape)), "channels, 1 or 3")

    @pytest.mark.parametrize("elem_type", [TensorProto.INT64, TensorProto.DOUBLE, TensorProto.STRING, TensorProto.BOOL])
    def test_input_of_other_numbers(self, builder, save, elem_type):
        model = classifier(builder)
        model.graph.input[0].type.tensor_type.elem_type = elem_type
        refused(save(model), "input 'x'", TensorProto.DataType.Name(elem_type), "float32")

    def test_uint8_with_channels_first(self, builder, save):
        model = classifier(builder, ["N", 1, 6, 6])
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        refused(save(model), "channels last")

    def test_two_outputs(self, builder, save):
        model = classifier(builder)
        model.graph.output.append(helper.make_tensor_value_info("Conv_0_0", TensorProto.FLOAT, None))
        refused(save(model), "2 outputs (Gemm_3_0, Conv_0_0)", "only the scores or the logits")

    def test_output_of_other_numbers(self, builder, save):
        net = builder(["N", 1, 6, 6])
        best = net.node("ArgMax", net.head("x", 36, 3), axis=1)
        refused(save(net.model(best, elem_type=TensorProto.INT64)), f"output {best!r}", "INT64", "float32")

    def test_a_map_as_output(self, builder, save):
        net = builder(["N", 1, 6, 6])
        maps = net.node("Conv", "x", net.weights(2, 1, 3, 3))
        refused(save(net.model(maps)), f"output {maps!r} is N × 2 × 4 × 4", "N × classes")

    def test_an_output_for_all_images_together(self, builder, save):
        net = builder(["N", 1, 6, 6])
        mean = net.node("ReduceMean", net.head("x", 36, 3), net.constant([0], np.int64))
        refused(save(net.model(mean)), f"output {mean!r}", "N × classes")

    def test_an_unknown_operator_where_its_shape_is_needed(self, builder, save):
        net = builder(["N", 1, 6, 6])
        refused(save(net.model(net.node("Guess", "x", domain="com.microsoft"))), "Guess")


class TestManifest:
    def test_labels(self, builder, save):
        refused(save(classifier(builder), manifest(labels=4)), "4 labels", "3 classes", "one label for each class")

    @pytest.mark.parametrize("image", [{"height": 7}, {"width": 5}, {"channels": 3}])
    def test_input(self, builder, save, image):
        refused(save(classifier(builder), manifest(**image)), "manifest says height", "? × 1 × 6 × 6", "correct")

    def test_open_sizes_without_a_manifest(self, builder, save):
        refused(save(classifier(builder, ["N", 1, "H", "W"])), "height and width are open", "manifest.json")

    def test_preprocessing_said_to_be_in_a_float_graph(self, builder, save):
        refused(save(classifier(builder), manifest(in_graph=True)), "in_graph is true", "FLOAT", "set it to false")

    def test_preprocessing_said_not_to_be_in_a_uint8_graph(self, builder, save):
        net = builder(["N", 6, 6, 1], TensorProto.UINT8)
        model = net.model(net.head(net.node("Cast", "x", to=1), 36, 3))
        refused(save(model, manifest()), "in_graph is false", "UINT8", "set it to true")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"labels": ["a"]}', '{"labels": [], "input": {}}', "\ufeff{}"])
    def test_wrong_file(self, builder, save, text):
        refused(save(classifier(builder), text), "its manifest.json is wrong", "correct it")

    def test_not_utf8(self, builder, save):
        path = save(classifier(builder))
        path.with_name("manifest.json").write_bytes(b'{"labels": "\xff"}')
        refused(path, "its manifest.json is wrong")

    def test_a_folder(self, builder, save):
        path = save(classifier(builder))
        path.with_name("manifest.json").mkdir()
        refused(path, "manifest.json beside it cannot be read")

    def test_wrong_metadata(self, builder, save):
        model = classifier(builder)
        helper.set_model_props(model, {METADATA_KEY: "{}"})
        refused(save(model), METADATA_KEY, "correct it in a manifest.json")


class TestExternalData:
    """External data may lie only in the model's own folder."""

    @pytest.fixture
    def external(self, builder, save):
        """Moves the kernel to an external location; gives the model's path and the kernel's bytes."""

        def external(location, **entries):
            model = classifier(builder)
            tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
            content = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": location, **entries}.items():
                tensor.external_data.add(key=key, value=str(value))
            return save(model), content

        return external

    @pytest.fixture
    def outside(self, tmp_path):
        secret = tmp_path / "secret"
        secret.write_bytes(b"\x00" * 4096)
        return secret

    def test_inside(self, builder, external, open_file, serve):
        path, content = external("weights/kernel.bin", offset=16, length=72)
        (path.parent / "weights").mkdir()
        (path.parent / "weights" / "kernel.bin").write_bytes(b"?" * 16 + content + b"?" * 8)
        opened = open_file(path)
        images = opened.images(2)
        answers = opened.classify(images)
        np.testing.assert_array_equal(answers, serve(classifier(builder)).classify(images))

    def test_a_link_that_stays_inside(self, external):
        path, content = external("kernel.bin")
        (path.parent / "data").write_bytes(content)
        (path.parent / "kernel.bin").symlink_to("data")
        assert load_network(path).classes == 3

    def test_a_folder_that_is_reached_by_a_link(self, external, tmp_path):
        path, content = external("kernel.bin")
        (path.parent / "kernel.bin").write_bytes(content)
        (tmp_path / "link").symlink_to(path.parent, target_is_directory=True)
        assert load_network(tmp_path / "link" / "model.onnx").classes == 3

    def test_absolute(self, external, outside):
        refused(external(str(outside))[0], "outside the model's folder", "relative path")

    @pytest.mark.parametrize(
        "location", ["../../secret", "weights/../../../secret", "..\\..\\secret", "C:\\secret", ""]
    )
    def test_elsewhere(self, external, outside, location):
        refused(external(location)[0], "outside the model's folder", "relative path")

    def test_a_link_out(self, external, outside):
        path, _ = external("kernel.bin")
        (path.parent / "kernel.bin").symlink_to(outside)
        refused(path, "'kernel.bin' is a link out of the model's folder")

    def test_a_folder_link_out(self, external, outside):
        path, _ = external("weights/secret")
        (path.parent / "weights").symlink_to(outside.parent, target_is_directory=True)
        refused(path, "'weights/secret' is a link out of the model's folder")

    @pytest.mark.parametrize("location", ["kernel.bin", "a\0b", "kernel.bin/x"])
    def test_missing(self, external, location):
        refused(external(location)[0], "is missing", "put it beside model.onnx")

    def test_a_link_to_itself(self, external):
        path, _ = external("kernel.bin")
        (path.parent / "kernel.bin").symlink_to("kernel.bin")
        refused(path, "is missing")

    def test_not_a_file(self, external):
        path, _ = external("kernel.bin")
        os.mkfifo(path.parent / "kernel.bin")
        refused(path, "not a regular file")

    @pytest.mark.parametrize("entries", [{"length": 73}, {"offset": 8, "length": 72}, {"offset": -4}, {"offset": 80}])
    def test_cut_off(self, external, entries):
        path, content = external("kernel.bin", **entries)
        (path.parent / "kernel.bin").write_bytes(content)
        refused(path, "has 72 bytes", "cut off")

    def test_no_numbers(self, external):
        path, content = external("kernel.bin", offset="here")
        (path.parent / "kernel.bin").write_bytes(content)
        refused(path, "no valid offset and length")

    def test_in_a_constant_node(self, builder, save, outside):
        net = builder(["N", 1, 6, 6])
        value = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        value.external_data.add(key="location", value=str(outside))
        product = net.node("Mul", "x", net.node("Constant", value=value))
        refused(save(net.model(net.head(product, 36, 3))), "outside the model's folder")

    def test_in_a_branch(self, builder, save, outside):
        net = builder(["N", 1, 6, 6])
        value = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        value.external_data.add(key="location", value=str(outside))
        info = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        branch = helper.make_graph([helper.make_node("Mul", ["x", "v"], ["out"])], "branch", [], [info], [value])
        chosen = net.node("If", net.constant(True, np.bool_), then_branch=branch, else_branch=branch)
        refused(save(net.model(net.head(chosen, 36, 3))), "outside the model's folder")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_served_but_never_crashes(builder, save, data):
    content = bytearray(classifier(builder).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = save(bytes(content))
    with contextlib.suppress(ModelError):
        build_catalogue(load_network(path))
