from __future__ import annotations

import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from convlens_server.v2 import service_pb2 as pb
from integration.v2.asking import arrays, normalised, outputs, tensor
from support import pixels


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def colour(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 12, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 2, 16, 17, 64])
def test_images_answer_as_classify_does(server, count):
    images = pixels(count, seed=count)
    scores, logits = server.classify("native", images)

    response = server.infer(
        model_name="native", id="the id", outputs=outputs("scores", "logits"), **tensor("image", images)
    )

    assert (response.model_name, response.model_version, response.id) == ("native", "3", "the id")
    assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
        ("scores", "FP32", [count, 16]),
        ("logits", "FP32", [count, 16]),
    ]
    values = arrays(response)
    np.testing.assert_array_equal(values["scores"], scores)
    np.testing.assert_array_equal(values["logits"], logits)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_foreign_network_takes_its_own_tensor(server, count):
    images = colour(count, seed=count)
    scores, logits = server.classify("conv", images)

    response = server.infer(model_name="conv", **tensor("x", normalised(images)))

    [output] = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [count, 5])
    np.testing.assert_array_equal(arrays(response)["y"], logits)
    both = server.infer(model_name="conv", outputs=outputs("scores", "logits"), **tensor("x", normalised(images)))
    np.testing.assert_array_equal(arrays(both)["scores"], scores)
    np.testing.assert_array_equal(arrays(both)["logits"], logits)


def test_float16(server):
    images = pixels(3)
    _, logits = server.classify("half", images)

    response = server.infer(model_name="half", **tensor("x", normalised(images, np.float16)))

    [output] = response.outputs
    assert (output.name, output.datatype) == ("y", "FP16")
    np.testing.assert_array_equal(arrays(response)["y"], logits.astype(np.float16))


def test_the_logarithm_of_scores(server):
    images = pixels(3)
    layer = server.maps("log", images, "log_softmax")["log_softmax"]

    # From the engine, as other outputs are, not from the lens: more images may be asked for than layers of.
    response = server.infer(model_name="log", **tensor("x", normalised(np.repeat(images, 20, axis=0))))

    assert response.outputs[0].name == "log_scores"
    values = arrays(response)["log_scores"]
    np.testing.assert_allclose(values, np.repeat(layer, 20, axis=0), rtol=1e-5, atol=1e-5)
    # Also where the scores are too small for their logarithm.
    assert layer.min() < -110
    request = {"outputs": outputs("log_scores", classification=1), **tensor("x", normalised(images))}
    [[best], *_] = arrays(server.infer(model_name="log", **request))["log_scores"]
    assert best.decode().split(":")[1:] == [str(layer[0].argmax()), f"class_{layer[0].argmax()}"]


def test_typed_contents(server):
    images = pixels(2)
    raw = server.infer(model_name="native", **tensor("image", images))
    given = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
    given.contents.uint_contents.extend(images.ravel().tolist())
    assert server.infer(model_name="native", inputs=[given]) == raw

    floats = normalised(images)
    raw = server.infer(model_name="linear", **tensor("x", floats))
    given = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=floats.shape)
    given.contents.fp32_contents.extend(floats.ravel().tolist())
    assert server.infer(model_name="linear", inputs=[given]) == raw


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize(("model", "name"), [("native", "image"), ("linear", "x")])
def test_image_files(server, model, name, shape):
    images = pixels(3)
    scores, _ = server.classify(model, images)
    files = [png(image) for image in images]
    given = pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=shape)

    raw = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    by_raw = server.infer(model_name=model, inputs=[given], outputs=outputs("scores"), raw_input_contents=[raw])
    given.contents.bytes_contents.extend(files)
    by_contents = server.infer(model_name=model, inputs=[given], outputs=outputs("scores"))

    assert by_contents == by_raw
    np.testing.assert_array_equal(arrays(by_raw)["scores"], scores)


@pytest.mark.parametrize("version", ["", "1", "2"])
def test_versions(server, version):
    response = server.infer(model_name="linear", model_version=version, **tensor("x", normalised(pixels(1))))

    assert response.model_version == (version or "2")


@pytest.mark.parametrize("k", [1, 3, 16, 99])
def test_classification(server, k):
    images = pixels(2)
    scores, _ = server.classify("native", images)

    response = server.infer(model_name="native", outputs=outputs("scores", classification=k), **tensor("image", images))

    [output] = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, min(k, 16)])
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, 16)]
    expected = [
        [f"{row[i]:.6f}:{i}:class_{i}".encode() for i in indices]
        for row, indices in zip(scores, order.tolist(), strict=True)
    ]
    assert arrays(response)["scores"].tolist() == expected


def test_layers_alone(server):
    images = colour(3)
    names = ("pool_1", "conv_1", "relu_2")
    maps = server.maps("conv", images, *names)

    values = arrays(server.infer(model_name="conv", outputs=outputs(*names), **tensor("x", normalised(images))))

    assert list(values) == list(names)
    for name in names:
        np.testing.assert_array_equal(values[name], maps[name])


def test_layers_with_declared_outputs_and_from_files(server):
    images = colour(2)
    scores, logits = server.classify("conv", images)
    maps = server.maps("conv", images, "relu_1", "flatten")
    wanted = outputs("relu_1", "y", "flatten", "scores")

    by_tensor = server.infer(model_name="conv", id="7", outputs=wanted, **tensor("x", normalised(images)))
    files = pb.ModelInferRequest.InferInputTensor(name="x", datatype="BYTES", shape=[2])
    files.contents.bytes_contents.extend(png(image) for image in images)
    by_files = server.infer(model_name="conv", id="7", outputs=wanted, inputs=[files])

    assert by_files == by_tensor
    assert by_tensor.id == "7"
    values = arrays(by_tensor)
    assert list(values) == ["relu_1", "y", "flatten", "scores"]
    np.testing.assert_array_equal(values["relu_1"], maps["relu_1"])
    np.testing.assert_array_equal(values["flatten"], maps["flatten"])
    np.testing.assert_array_equal(values["y"], logits)
    np.testing.assert_array_equal(values["scores"], scores)


def test_a_layer_of_our_own_network(server):
    images = pixels(2)
    maps = server.maps("native", images, "output")

    values = arrays(server.infer(model_name="native", outputs=outputs("output"), **tensor("image", images)))

    np.testing.assert_array_equal(values["output"], maps["output"])


def test_requests_of_every_kind_at_the_same_time(server):
    """Images, tensors, files, layers and Classify share a model's queue, and each gets its own answer."""
    images = colour(24)
    scores, logits = server.classify("conv", images)
    maps = server.maps("conv", images[:16], "pool_1")["pool_1"]
    failures: list[BaseException] = []

    def check(worker):
        try:
            for n in range(worker, 16, 2):
                one = images[n : n + 1]
                values = arrays(
                    server.infer(model_name="conv", outputs=outputs("y", "scores"), **tensor("x", normalised(one)))
                )
                np.testing.assert_allclose(values["y"], logits[n : n + 1], rtol=1e-5, atol=1e-5)
                files = pb.ModelInferRequest.InferInputTensor(name="x", datatype="BYTES", shape=[1])
                files.contents.bytes_contents.append(png(one))
                values = arrays(server.infer(model_name="conv", inputs=[files], outputs=outputs("pool_1", "scores")))
                np.testing.assert_allclose(values["pool_1"], maps[n : n + 1], rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(values["scores"], scores[n : n + 1], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(server.classify("conv", one)[0], scores[n : n + 1], rtol=1e-5, atol=1e-6)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=check, args=(n % 2,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_parameters_that_change_nothing(server):
    images = pixels(1)
    plain = server.infer(model_name="native", **tensor("image", images))
    parameters = {
        "timeout": pb.InferParameter(int64_param=10_000_000),
        "priority": pb.InferParameter(uint64_param=3),
        "triton_enable_empty_final_response": pb.InferParameter(bool_param=True),
        "sequence_id": pb.InferParameter(int64_param=5),
        "mine": pb.InferParameter(string_param="anything"),
    }

    assert server.infer(model_name="native", parameters=parameters, **tensor("image", images)) == plain


def test_a_stream_answers_each_request_and_goes_on_after_errors(server):
    images = pixels(60)
    scores, _ = server.classify("native", images)

    def requests():
        for n in range(60):
            request = pb.ModelInferRequest(
                model_name="native" if n % 7 else "none", id=f"#{n}", **tensor("image", images[n : n + 1])
            )
            if n % 5 == 2:
                request.outputs.add(name="output")
            yield request

    answers = list(server.stream(requests()))

    by_id = {answer.infer_response.id: answer for answer in answers}
    assert len(answers) == len(by_id) == 60
    for n in range(60):
        answer = by_id[f"#{n}"]
        assert answer.infer_response.parameters["triton_final_response"].bool_param
        if n % 7 == 0:
            assert answer.error_message == "Request for unknown model: 'none' is not found"
            assert not answer.infer_response.outputs
        elif n % 5 == 2:
            assert list(arrays(answer.infer_response)) == ["output"]
        else:
            assert not answer.error_message
            [line] = arrays(answer.infer_response)["scores"]
            np.testing.assert_allclose(line, scores[n], rtol=1e-5, atol=1e-7)


def test_an_empty_stream_ends(server):
    assert list(server.stream(iter(()))) == []


def test_metadata(server):
    metadata = server.ask("ModelMetadata", pb.ModelMetadataRequest(name="conv"))

    assert (metadata.name, list(metadata.versions), metadata.platform) == ("conv", ["1"], "onnxruntime_onnx")
    [given], [output] = metadata.inputs, metadata.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("x", "FP32", [-1, 3, 16, 12])
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [-1, 5])
    layers = json.loads(metadata.properties["convlens.layers"])
    assert [layer["name"] for layer in layers][:3] == ["conv_1", "relu_1", "pool_1"]
    assert layers[0]["shape"] == [6, 16, 12]
    assert json.loads(metadata.properties["convlens.manifest"])["labels"][0] == "class_0"

    native = server.ask("ModelMetadata", pb.ModelMetadataRequest(name="native"))
    [given], [output] = native.inputs, native.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("image", "UINT8", [-1, 8, 8, 1])
    assert (output.name, output.datatype, list(output.shape)) == ("scores", "FP32", [-1, 16])
    linear = server.ask("ModelMetadata", pb.ModelMetadataRequest(name="linear", version="1"))
    assert list(linear.versions) == ["1", "2"]


def test_config(server):
    config = server.ask("ModelConfig", pb.ModelConfigRequest(name="native")).config
    [given], [output] = config.input, config.output
    assert (config.name, config.platform, config.backend) == ("native", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, config.default_model_filename) == (64, "model.onnx")
    assert (given.name, given.data_type, given.format, list(given.dims)) == ("image", 2, 1, [8, 8, 1])
    assert (output.name, output.data_type, list(output.dims)) == ("scores", 11, [16])
    assert config.instance_group[0].kind == 2
    given = server.ask("ModelConfig", pb.ModelConfigRequest(name="conv")).config.input[0]
    assert (given.data_type, given.format, list(given.dims)) == (11, 2, [3, 16, 12])


def test_server(server):
    assert server.ask("ServerLive", pb.ServerLiveRequest()).live
    assert server.ask("ServerReady", pb.ServerReadyRequest()).ready
    metadata = server.ask("ServerMetadata", pb.ServerMetadataRequest())
    assert metadata.name == "convlens"
    assert "system_shared_memory" in metadata.extensions
    for model, ready in (("native", True), ("broken", False)):
        assert server.ask("ModelReady", pb.ModelReadyRequest(name=model)).ready == ready


def test_index(server):
    def index(**fields):
        models = server.ask("RepositoryIndex", pb.RepositoryIndexRequest(**fields)).models
        return {(model.name, model.version): (model.state, bool(model.reason)) for model in models}

    everything = index()
    assert everything["broken", "1"] == ("UNAVAILABLE", True)
    assert everything["linear", "1"] == everything["linear", "2"] == ("READY", False)
    assert set(index(ready=True)) == set(everything) - {("broken", "1")}


def test_statistics(server):
    def asked(**fields):
        return server.ask("ModelStatistics", pb.ModelStatisticsRequest(**fields)).model_stats

    [before] = asked(name="native", version="3")
    for count in (1, 2, 40):
        server.infer(model_name="native", **tensor("image", pixels(count)))
    # A batch is counted when its answers have been sent.
    ends = time.monotonic() + 20
    while (after := asked(name="native")[0]).execution_count < before.execution_count + 3:
        assert time.monotonic() < ends

    assert (after.name, after.version) == ("native", "3")
    assert after.inference_count - before.inference_count == 43
    assert after.execution_count - before.execution_count == 3
    assert after.last_inference > 1_000_000_000_000
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        old, new = getattr(before.inference_stats, part), getattr(after.inference_stats, part)
        assert new.count - old.count == 3
        assert new.ns > old.ns
    sizes = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    assert sizes[40] >= 1
    assert {(each.name, each.version) for each in asked()} >= {("native", "3"), ("linear", "1"), ("linear", "2")}


def test_reflection_and_health_know_the_service(server):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(server.channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"), timeout=10).status
    assert status == health_pb2.HealthCheckResponse.SERVING
