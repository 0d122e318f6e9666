"""The SDK's view into a network, through a real server, on the models that ship."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import convlens
from support import serving

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "models"
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def shipped():
    with serving(MODELS) as served:
        yield served


@pytest.fixture(scope="module")
def client(shipped):
    with convlens.Client(shipped.address) as client:
        yield client


@pytest.fixture(scope="module")
def espresso(client):
    return next(sample.file for sample in client.samples("tiny_vgg") if sample.name == "espresso")


@pytest.mark.parametrize("model", ["lecture_cnn", "tiny_vgg", "tiny_vgg_bn"])
def test_every_sample_is_what_its_name_says(client, model):
    samples = client.samples(model)
    labels = client.model(model).labels

    answers = client.classify([sample.file for sample in samples], model)

    assert [answer.label for answer in answers] == list(labels)
    assert [sample.name.replace("_", " ") for sample in samples] == list(labels)


def test_the_graph_has_the_catalogue(client):
    graph = client.graph("tiny_vgg")

    assert tuple(each.layer for each in graph.layers) == client.model("tiny_vgg").layers
    first = graph.layers[0]
    assert (first.input_units, first.units) == (64 * 64 * 3, 10 * 62 * 62)
    assert first.dense_connections == first.input_units * first.units
    assert ("input", "conv_1_1") in graph.edges


def test_kernels_are_those_that_made_the_maps(client, espresso):
    pixels = client.maps(espresso, "tiny_vgg", layers="relu_1_1")[0].activation
    kernels = client.kernels("conv_1_2", "tiny_vgg", channels=[7, 2])
    assert kernels.bias is not None
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(1, 2))

    convolved = np.einsum("cyxhw,ochw->oyx", windows, kernels.weights, optimize=True) + kernels.bias[:, None, None]

    expected = client.maps(espresso, "tiny_vgg", layers="conv_1_2", channels=[7, 2])[0].activation
    np.testing.assert_allclose(convolved, expected, rtol=1e-4, atol=1e-4)
    coarse = client.kernels("conv_1_2", "tiny_vgg", channels=[7, 2], dtype="uint8").weights
    assert np.abs(coarse - kernels.weights).max() <= np.ptp(kernels.weights) / 255


def test_explanations_add_up_to_the_maps(client, espresso):
    for layer in client.maps(espresso, "tiny_vgg", all_layers=True):
        place = np.unravel_index(int(np.abs(layer.activation).argmax()), layer.activation.shape)

        unit = client.explain(espresso, layer.layer, *map(int, place), model="tiny_vgg")

        assert unit.result == pytest.approx(float(layer.activation[place]), rel=1e-4, abs=1e-5)
        assert str(unit).startswith(f"{layer.layer}[")
        assert unit._repr_html_()


@pytest.mark.parametrize("method", ["occlusion", "eigen_cam", "score_cam", "grad_cam"])
def test_attributions(client, espresso, method):
    found = client.attribute(espresso, "tiny_vgg", method=method, overlay=True)

    assert found.method == method
    assert found.map.shape == (64, 64)
    assert found.map.dtype == np.float32
    assert np.isfinite(found.map).all()
    assert found.map.max() > 0
    assert found.overlay is not None
    assert found.overlay.shape == (64, 64, 4)
    assert found.prediction.label == "espresso"


def test_a_unit_that_is_not_there(client, espresso):
    with pytest.raises(convlens.NotFound):
        client.explain(espresso, "conv_1_1", 10, model="tiny_vgg")
    with pytest.raises(convlens.NotFound, match="conv_1_1"):
        client.explain(espresso, "conv_1_", 0, model="tiny_vgg")


def test_the_lecture_runs_from_the_first_cell_to_the_last(shipped, tmp_path):
    environment = {
        **os.environ,
        "CONVLENS_SERVER": shipped.address,
        "LECTURE_FIGURES": str(tmp_path / "figures"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "error", str(EXAMPLES / "lecture.py")]

    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=55, check=False)

    assert result.returncode == 0, result.stderr
    told = result.stdout
    assert told.count("[4 3 5]") == 3
    assert "[[8 2 6]\n [2 8 9]\n [3 3 8]]" in told
    for number in ("320", "18,496", "1,179,776", "1,290", "1,199,882"):
        assert number in told
    assert "the drawn 7 is a 7" in told
    assert "espresso: 98" in told
    figures = sorted((tmp_path / "figures").iterdir())
    assert len(figures) == 14
    for figure in figures:
        with PIL.Image.open(figure) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 2


def test_the_readmes_example_runs(shipped, tmp_path):
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    program = tmp_path / "example.py"
    program.write_text(code.replace("localhost:8001", shipped.address))
    command = [sys.executable, "-W", "error", str(program)]

    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("espresso 0.98")
    assert "conv_1_1[3, 10, 12] = " in result.stdout
    assert (tmp_path / "where.png").exists()


def test_the_samples_can_be_drawn_again(tmp_path):
    command = [sys.executable, str(EXAMPLES / "samples" / "draw.py"), str(tmp_path)]

    subprocess.run(command, check=True, timeout=55)

    for drawn in tmp_path.glob("*/1/samples/*.png"):
        shipped = MODELS / drawn.relative_to(tmp_path)
        with PIL.Image.open(drawn) as new, PIL.Image.open(shipped) as old:
            # Other releases of Pillow place an edge a little differently.
            difference = np.abs(np.asarray(new, np.int16) - np.asarray(old, np.int16))
            assert difference.mean() < 2
    assert len(list(tmp_path.glob("*/1/samples/*.png"))) == len(list(MODELS.glob("*/1/samples/*.png"))) == 30


def test_compare_two_images(client):
    first, second = (sample.file for sample in client.samples("tiny_vgg")[:2])

    layers = client.compare(first, second, "tiny_vgg", differences=True)

    assert [each.layer for each in layers] == [layer.name for layer in client.model("tiny_vgg").layers]
    for each in layers:
        ours, theirs = (
            client.maps(file, "tiny_vgg", layers=each.layer)[0].activation.astype(np.float64)
            for file in (first, second)
        )
        assert each.difference is not None
        np.testing.assert_allclose(each.difference, theirs - ours, rtol=1e-4, atol=1e-4)
        norms = np.linalg.norm(ours), np.linalg.norm(theirs)
        assert each.cosine == pytest.approx((ours * theirs).sum() / (norms[0] * norms[1]), rel=1e-3, abs=1e-4)
        assert each.relative_difference == pytest.approx(np.linalg.norm(theirs - ours) / norms[0], rel=1e-3)
        assert each.cka is None


def test_compare_two_models(client):
    files = [sample.file for sample in client.samples("tiny_vgg")]

    layers = client.compare(files, model="tiny_vgg", other_model="tiny_vgg_bn")

    assert [each.layer for each in layers] == ["output", "softmax"]
    for each in layers:
        assert each.models == (("tiny_vgg", 1), ("tiny_vgg_bn", 1))
        assert each.cosine.shape == each.relative_difference.shape == (10,)
        assert each.cka is not None
        assert 0.3 < each.cka <= 1
        assert each.difference is None


def test_maximizing_images(tmp_path):
    # Its results are kept beside the model, so it gets a copy.
    shutil.copytree(MODELS / "tiny_vgg", tmp_path / "tiny_vgg")
    told = []
    with serving(tmp_path) as served, convlens.Client(served.address) as client:
        (found,) = client.maximizing(
            "conv_2_2", channels=[3], dataset="samples", count=4, images=True,
            progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
        samples = {sample.name: sample.file for sample in client.samples()}

        assert (found.layer, found.channel, found.dataset, found.model) == ("conv_2_2", 3, "samples", "tiny_vgg")
        assert told[-1] == (10, 10)
        largest = {
            name: float(client.maps(file, layers="conv_2_2", channels=[3])[0].activation.max())
            for name, file in samples.items()
        }
        best = sorted(largest.values(), reverse=True)[:4]
        assert [image.activation for image in found.images] == pytest.approx(best, rel=1e-4)
        assert max(largest, key=lambda name: largest[name]) in found.images[0].file
        assert found.images[0].image is not None
        assert found.plot().axes
