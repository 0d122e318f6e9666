"""Where maps belong, what each method makes of them, and the colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from convlens_server.attribution.cams import eigen_cam, grad_cam, normalised, score_cam
from convlens_server.attribution.occlusion import occlusion, starts
from convlens_server.attribution.overlay import colours, overlay
from convlens_server.attribution.placing import Placing, default_layer, has_positions
from convlens_server.background import Outputs
from convlens_server.catalogue import Layer
from convlens_server.errors import NotApplicable


class Scoring:
    """Stands for `Background`: runs images by a function of them, in pieces."""

    def __init__(self, score, piece=5):
        self.score, self.piece, self.images = score, piece, []

    def run(self, images):
        images = list(images)
        self.images += images
        for start in range(0, len(images), self.piece):
            scores = np.array([[0, self.score(image.astype(float))] for image in images[start : start + self.piece]])
            yield Outputs(scores.astype(np.float32), scores.astype(np.float32))


# Occlusion


@given(st.integers(1, 40), st.data())
def test_squares_cover_every_pixel(size, data):
    window = data.draw(st.integers(1, size))
    stride = data.draw(st.integers(1, window))
    covered = np.zeros(size, bool)
    found = starts(size, window, stride)
    for start in found:
        assert 0 <= start <= size - window
        covered[start : start + window] = True
    assert covered.all()
    assert found == sorted(set(found))
    assert found[:-1] == list(range(0, found[-1], stride))


def test_occlusion_is_the_mean_fall_over_the_squares_that_cover_a_pixel():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (9, 11, 3), np.uint8)
    weights = random.standard_normal((9, 11, 3))
    scoring = Scoring(lambda image: (image * weights).sum() / 1e4)
    score = scoring.score(image.astype(float))
    found = occlusion(scoring, image, 1, score, window=4, stride=3)

    colour = np.rint(image.reshape(-1, 3).mean(0))
    falls, count = np.zeros((9, 11)), np.zeros((9, 11))
    for top in (0, 3, 5):
        for left in (0, 3, 6, 7):
            copy = image.astype(float)
            copy[top : top + 4, left : left + 4] = colour
            falls[top : top + 4, left : left + 4] += score - scoring.score(copy)
            count[top : top + 4, left : left + 4] += 1
    assert len(scoring.images) == 12
    np.testing.assert_allclose(found, falls / count, atol=1e-5)
    assert found.dtype == np.float32


def test_occlusion_finds_the_only_pixel_that_counts():
    image = np.full((8, 8, 1), 10, np.uint8)
    image[5, 2] = 250
    found = occlusion(Scoring(lambda image: image[5, 2, 0] / 255), image, 1, 250 / 255, window=1, stride=1)
    assert np.unravel_index(found.argmax(), found.shape) == (5, 2)
    np.testing.assert_allclose(np.delete(found.ravel(), 5 * 8 + 2), 0, atol=1e-6)


# Class activation maps


def evenly(size):
    """Places maps of the image's own size: nothing moves."""

    class Same:
        def spread(self, maps):
            return maps

    return Same()


def test_score_cam_weighs_each_map_by_what_it_lets_through():
    image = np.full((6, 6, 1), 20, np.uint8)
    image[1:3, 1:3] = 220
    image[4, 4] = 120
    maps = np.zeros((4, 6, 6), np.float32)
    maps[0, 1:3, 1:3] = 7
    maps[1, 4, 4] = 3
    maps[2] = 5
    maps[3, 0, 5] = 1
    scoring = Scoring(lambda image: image[1:3, 1:3].mean() / 55 + image[4, 4, 0] / 60)
    found = score_cam(scoring, image, 1, maps, evenly(6))

    # One image for each map that is not equal everywhere.
    assert len(scoring.images) == 3
    np.testing.assert_array_equal(scoring.images[0][..., 0], np.where(maps[0] > 0, 220, 0))
    np.testing.assert_array_equal(scoring.images[1][..., 0], np.where(maps[1] > 0, 120, 0))
    raised = np.exp([4, 2, 0])
    weights = raised / raised.sum()
    np.testing.assert_allclose(found, weights[0] * maps[0] + weights[1] * maps[1] + weights[2] * maps[3], rtol=1e-5)


def test_score_cam_of_maps_that_say_nothing():
    scoring = Scoring(lambda image: 1.0)
    found = score_cam(scoring, np.zeros((4, 4, 3), np.uint8), 1, np.ones((3, 4, 4), np.float32), evenly(4))
    assert found.tolist() == [[0] * 4] * 4
    assert not scoring.images


def test_eigen_cam_is_the_first_singular_vector():
    random = np.random.default_rng(1)
    for shape in ((3, 7, 5), (40, 4, 3)):
        maps = random.standard_normal(shape).astype(np.float32)
        matrix = maps.reshape(shape[0], -1).T.astype(float)
        projection = matrix @ np.linalg.svd(matrix)[2][0]
        if (np.linalg.norm(matrix, axis=1) * projection).sum() < 0:
            projection = -projection
        found = eigen_cam(maps)
        np.testing.assert_allclose(found.ravel(), np.maximum(projection, 0), rtol=1e-4, atol=1e-5)


def test_eigen_cam_is_positive_where_maps_are_large():
    maps = np.zeros((5, 6, 6), np.float32)
    maps[:, 2, 3] = [1, 2, 0, 4, 1]
    found = eigen_cam(maps)
    assert found[2, 3] == pytest.approx(np.sqrt(22), rel=1e-5)
    assert (np.delete(found.ravel(), 2 * 6 + 3) < 1e-6).all()
    assert (eigen_cam(np.zeros((3, 4, 4), np.float32)) == 0).all()


def test_grad_cam_weighs_each_map_by_its_mean_gradient():
    random = np.random.default_rng(2)
    maps, gradients = random.standard_normal((2, 4, 5, 6)).astype(np.float32)
    expected = np.maximum(sum(gradients[n].mean() * maps[n] for n in range(4)), 0)
    np.testing.assert_allclose(grad_cam(maps, gradients), expected, atol=1e-6)


def test_normalised():
    assert normalised(np.float32([[1, 4]])).tolist() == [[0.25, 1]]
    assert normalised(np.zeros((2, 2), np.float32)).tolist() == [[0, 0], [0, 0]]


# Places


def test_a_unit_stands_at_the_centre_of_its_receptive_field(builder, serve):
    """Without padding a unit's field is where it reads, not where an even division of the image would put it."""
    build = builder(["N", 1, 21, 17])
    conv = build.node("Conv", "x", build.constant(np.ones((1, 1, 5, 3))), name="conv", strides=[4, 2])
    opened = serve(build.model(build.head(conv, 5 * 8), shape=["N", 2]))
    placing = Placing(opened.catalogue["conv"], (21, 17))
    for row, column in ((0, 0), (2, 5), (4, 7)):
        maps = np.zeros((5, 8), np.float32)
        maps[row, column] = 1
        spread = placing.spread(maps)
        assert spread.shape == (21, 17)
        assert spread[4 * row + 2, 2 * column + 1] == 1
    ramp = placing.spread(np.arange(5, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32))
    np.testing.assert_allclose(ramp[2:19, 3], np.arange(17) / 4, atol=1e-6)
    # Beyond the outermost centres the outermost values go on.
    assert (ramp[:2] == 0).all()
    assert (ramp[19:] == 4).all()


def test_units_that_see_everything_divide_the_image_evenly(builder, serve):
    build = builder(["N", 1, 8, 8])
    conv = build.node("Conv", "x", build.weights(2, 1, 2, 2), name="conv", strides=[2, 2])
    gate = build.node("Sigmoid", build.node("GlobalAveragePool", conv))
    gated = build.node("Mul", conv, gate, name="gated")
    opened = serve(build.model(build.head(gated, 2 * 16), shape=["N", 2]))
    layer = opened.catalogue["gated"]
    assert layer.receptive_field_stride == (0, 0)
    maps = np.zeros((4, 4), np.float32)
    maps[1, 2] = 1
    spread = Placing(layer, (8, 8)).spread(maps)
    assert np.argwhere(spread == spread.max()).tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


@given(st.integers(1, 9), st.integers(1, 9), st.floats(-100, 100))
def test_a_map_of_one_value_stays_that(rows, columns, value):
    layer = Layer(
        "maps", "conv", "Conv", (), (2, rows, columns), (), (), (), (), 0, 0, 0, (3, 8), (2, 0), (-1, 2), "maps"
    )
    spread = Placing(layer, (17, 13)).spread(np.full((2, rows, columns), value, np.float32))
    np.testing.assert_allclose(spread, np.float32(value), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("resnet18", "layer4.1.relu_1", (512, 2, 2)),
        ("densenet121", "relu", (1024, 2, 2)),
        ("efficientnet_b0", "features.8.2.mul", (1280, 2, 2)),
        ("mobilenet_v3_small", "features.12.2", (576, 2, 2)),
        ("squeezenet1_1", "classifier.2", (7, 3, 3)),
    ],
)
def test_default_layers(tmp_path, export, open_file, name, layer, size):
    network = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    path = tmp_path / "1" / "model.onnx"
    export(network, torch.randn(1, 3, 64, 64), path, dynamo=False)
    found = default_layer(open_file(path).catalogue)
    assert (found.name, found.shape) == (layer, size)


def test_a_chain_s_default_layer_is_the_last_activation(builder, serve):
    build = builder(["N", 3, 16, 16])
    maps = "x"
    for n, channels in ((1, 3), (2, 4)):
        maps = build.node("Conv", maps, build.weights(4, channels, 3, 3), name=f"conv_{n}")
        maps = build.node("Relu", maps, name=f"relu_{n}")
    pooled = build.node("MaxPool", maps, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1], name="pool")
    last = build.node("Conv", build.node("GlobalAveragePool", pooled), build.weights(6, 4, 1, 1), name="conv_3")
    opened = serve(build.model(build.head(last, 6), shape=["N", 2]))
    assert default_layer(opened.catalogue).name == "relu_2"
    assert not has_positions(opened.catalogue["conv_3"])


def test_a_network_without_convolutions_has_no_default_layer(builder, serve):
    build = builder(["N", 1, 8, 8])
    opened = serve(build.model(build.head("x", 64), shape=["N", 2]))
    with pytest.raises(NotApplicable, match="take occlusion"):
        default_layer(opened.catalogue)


# Colours


def oklab(rgb: np.ndarray) -> np.ndarray:
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def test_the_colours_are_perceptually_uniform():
    table = colours()
    assert table.shape == (256, 3)
    lab = oklab(table.astype(float))
    # A channel has 256 steps: neighbours alone would show its rounding more than the colours.
    apart = np.linalg.norm(lab[8:] - lab[:-8], axis=1)
    assert apart.min() > 0.8 * apart.mean()
    assert apart.max() < 1.2 * apart.mean()
    assert (np.diff(lab[::4, 0]) > 0).all()
    assert lab[-1, 0] - lab[0, 0] > 0.6


def test_the_overlay_covers_more_where_the_value_is_larger():
    image = np.full((4, 5, 3), 128, np.uint8)
    values = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)
    found = overlay(image, values)
    assert found.shape == (4, 5, 4)
    assert found.dtype == np.uint8
    assert (found[..., 3] == 255).all()
    assert (found[values <= 0][:, :3] == 128).all()
    moved = np.abs(found[values > 0][:, :3].astype(int) - 128).sum(1)
    assert moved[-1] == moved.max()
    np.testing.assert_array_equal(found[3, 4, :3], np.rint(0.2 * 128 + 0.8 * colours()[255]))


def test_the_overlay_of_a_grey_image_without_any_value():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    found = overlay(image, np.zeros((2, 3), np.float32))
    assert (found[..., :3] == image).all()
