from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from convlens.v1 import convlens_pb2 as pb
from support import CLASSES, SIDE, expected_logits, linear_model, pixels, put, raw


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def test_one_image(server):
    images = pixels(1)
    logits = expected_logits(images)[0]

    response = server.stub.Classify(pb.ClassifyRequest(model="linear", images=raw(images)), timeout=10)

    [result] = response.results
    order = np.argsort(-logits, kind="stable")[:5]
    assert [prediction.index for prediction in result.predictions] == order.tolist()
    assert [prediction.label for prediction in result.predictions] == [f"class_{index}" for index in order]
    np.testing.assert_allclose(
        [prediction.score for prediction in result.predictions], softmax(logits[None])[0, order], rtol=1e-4, atol=1e-7
    )
    assert not result.scores
    assert not result.logits
    assert (response.model, response.version) == ("linear", 2)
    assert response.queue_ms >= 0
    assert response.compute_ms > 0


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100, 256])
def test_many_images_come_back_in_order_with_all_scores_and_logits(server, count):
    images = pixels(count, seed=count)
    logits = expected_logits(images)

    response = server.stub.Classify(
        pb.ClassifyRequest(
            model="linear", version=1, images=raw(images), top_k=1, include_scores=True, include_logits=True
        ),
        timeout=30,
    )

    assert response.version == 1
    assert len(response.results) == count
    np.testing.assert_allclose([result.logits for result in response.results], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([result.scores for result in response.results], softmax(logits), rtol=1e-3, atol=1e-6)
    for result, line in zip(response.results, softmax(logits), strict=True):
        assert [prediction.index for prediction in result.predictions] == [line.argmax()]


def test_files_answer_as_their_pixels_do(server):
    images = pixels(3)
    by_pixels = server.stub.Classify(
        pb.ClassifyRequest(model="linear", images=raw(images), include_logits=True), timeout=10
    )

    files = pb.Images(encoded=pb.EncodedImages(files=[png(image) for image in images]))
    by_files = server.stub.Classify(pb.ClassifyRequest(model="linear", images=files, include_logits=True), timeout=10)

    assert by_files.results == by_pixels.results


def test_a_file_of_another_size_and_colour_is_fitted(server):
    image = np.full((50, 20, 3), (200, 200, 200), np.uint8)
    files = pb.Images(encoded=pb.EncodedImages(files=[png(image)]))

    response = server.stub.Classify(pb.ClassifyRequest(model="linear", images=files, include_logits=True), timeout=10)

    grey = np.full((1, SIDE, SIDE, 1), 200, np.uint8)
    np.testing.assert_allclose(response.results[0].logits, expected_logits(grey)[0], rtol=1e-4, atol=1e-4)


def test_top_k_of_all_classes(server):
    request = pb.ClassifyRequest(model="linear", images=raw(pixels(1)), top_k=CLASSES)

    [result] = server.stub.Classify(request, timeout=10).results

    assert sorted(prediction.index for prediction in result.predictions) == list(range(CLASSES))
    scores = [prediction.score for prediction in result.predictions]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_stream_gives_ids_back_and_goes_on_after_an_error(server):
    images = pixels(50)

    def requests():
        for n in range(50):
            request = pb.ClassifyRequest(model="linear", images=raw(images[n : n + 1]), top_k=1, include_logits=True)
            if n % 10 == 3:
                request.top_k = 99
            yield pb.ClassifyStreamRequest(id=1000 + n, request=request)

    answers = {answer.id: answer for answer in server.stub.ClassifyStream(requests(), timeout=30)}

    assert sorted(answers) == list(range(1000, 1050))
    logits = expected_logits(images)
    for n in range(50):
        answer = answers[1000 + n]
        if n % 10 == 3:
            assert answer.error.code == 3
            assert answer.error.message == "top_k is 99, but must be 1 … 16, the number of classes"
            assert answer.error.details
        else:
            np.testing.assert_allclose(answer.response.results[0].logits, logits[n], rtol=1e-4, atol=1e-4)


def test_an_empty_stream_ends(server):
    assert list(server.stub.ClassifyStream(iter(()), timeout=10)) == []


def test_list_models(server):
    models = server.stub.ListModels(pb.ListModelsRequest(), timeout=10).models

    rows = [(model.model, model.version, model.state, model.is_default) for model in models]
    assert rows == [
        ("broken", 1, pb.MODEL_STATE_FAILED, False),
        ("conv", 1, pb.MODEL_STATE_READY, True),
        ("linear", 1, pb.MODEL_STATE_READY, False),
        ("linear", 2, pb.MODEL_STATE_READY, True),
    ]
    assert "not an ONNX model" in models[0].error
    linear = models[3]
    assert (linear.classes, linear.height, linear.width, linear.channels) == (CLASSES, SIDE, SIDE, 1)
    assert linear.parameters == SIDE * SIDE * CLASSES


def test_get_model(server):
    model = server.stub.GetModel(pb.GetModelRequest(model="conv"), timeout=10)

    assert (model.model, model.version, list(model.ready_versions)) == ("conv", 1, [1])
    assert list(model.labels) == [f"class_{n}" for n in range(5)]
    names = ["conv_1", "relu_1", "pool_1", "conv_2", "relu_2", "flatten", "output", "softmax"]
    assert [layer.name for layer in model.layers][:7] == names[:7]
    conv = model.layers[3]
    assert (conv.kind, conv.op_type, list(conv.shape), list(conv.kernel)) == ("conv", "Conv", [4, 6, 4], [3, 3])
    assert conv.parameters == 4 * 6 * 9 + 4
    assert list(conv.receptive_field) == [8, 8]
    assert list(conv.receptive_field_stride) == [2, 2]
    assert list(conv.receptive_field_start) == [-1, -1]
    assert model.parameters == sum(layer.parameters for layer in model.layers)
    assert model.device == "cpu"
    assert model.max_batch == 16
    assert '"labels"' in model.manifest_json


def test_the_only_model_needs_no_name(serve, tmp_path):
    put(tmp_path, "only", 3, linear_model())
    with serve(tmp_path) as server:
        response = server.stub.Classify(pb.ClassifyRequest(images=raw(pixels(1))), timeout=10)
        assert (response.model, response.version) == ("only", 3)
