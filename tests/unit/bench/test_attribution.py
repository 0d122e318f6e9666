"""The attribution benchmark's curves are what they are called, and its report says what they say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import attribution


class Patch:
    """Scores an image by how bright a patch of it is."""

    def scores(self, images):
        bright = images[:, 4:8, 8:12].mean((1, 2, 3)) / 255
        return np.stack([1 - bright, bright], 1).astype(np.float32)


@pytest.fixture
def image():
    image = np.full((16, 16, 3), 30, np.uint8)
    image[4:8, 8:12] = 250
    return image


def curves(image, values):
    return attribution.curves(Patch(), image, values, 1, np.random.default_rng(0))


def test_a_right_attribution_is_better_than_a_wrong_one(image):
    right = np.zeros((16, 16), np.float32)
    right[4:8, 8:12] = 1
    deletion, insertion = curves(image, right)
    wrong_deletion, wrong_insertion = curves(image, -right)
    assert deletion < 0.3 < 0.9 < wrong_deletion
    assert insertion > 0.9 > 0.8 > wrong_insertion


def test_pixels_of_one_value_come_in_random_order(image):
    """Not row by row, which would be an attribution, too."""
    deletion, insertion = curves(image, np.zeros((16, 16), np.float32))
    # The patch goes, and comes, pixel by pixel, as evenly as chance has it.
    assert deletion == pytest.approx((250 + 44) / 2 / 255, abs=0.06)
    assert insertion == pytest.approx((250 + 200) / 2 / 255, abs=0.06)


def test_grey_images(image):
    deletion, insertion = curves(image[..., :1], np.zeros((16, 16), np.float32))
    assert 0 < deletion < insertion < 1


def test_random_maps_are_smooth():
    values = attribution.random_map((64, 48), np.random.default_rng(0))
    assert values.shape == (64, 48)
    assert np.abs(np.diff(values, axis=0)).max() < 0.2
    assert values.std() > 0.1


@pytest.fixture
def result():
    random = {"deletion": [0.5, 0.5, 0.6], "insertion": [0.5, 0.5, 0.4]}
    better = {"deletion": [0.3, 0.2, 0.2], "insertion": [0.8, 0.6, 0.3], "compute_ms": 12.5}
    worse = {"deletion": [0.6, 0.5, 0.6], "insertion": [0.5, 0.4, 0.4], "compute_ms": 1.0}
    methods = dict.fromkeys(attribution.METHODS, worse) | {"occlusion": better}
    return {
        "settings": {"images": 3, "most": 3, "steps": 32, "margin": 0.01},
        "machine": {
            "cpu": "Some CPU", "cores": 2, "load_before": 0.0, "kernel": "Linux 6", "python": "3.11",
            "onnxruntime": "1.32", "numpy": "2.4",
        },
        "models": {"net": {**methods, attribution.RANDOM: random, attribution.PIXELS: random}},
    }  # fmt: skip


def test_goals_are_differences_image_by_image(result):
    deletion, insertion, worse, *_ = attribution.goals(result)
    assert deletion["what"] == "net, occlusion: deletion, better than the random maps by"
    assert deletion["median"] == pytest.approx(0.3)
    assert insertion["median"] == pytest.approx(0.1)
    assert (deletion["reached"], insertion["reached"], worse["reached"]) == (True, True, False)
    # 0.3, 0.1, −0.1: mean 0.1, standard error 0.2 ÷ √3.
    assert insertion["high"] - insertion["low"] == pytest.approx(2 * 1.96 * 0.2 / 3**0.5)


def test_the_report(result):
    result["goals"] = attribution.goals(result)
    text = attribution.render(result)
    assert "python bench/attribution.py FOLDER --most 3" in text
    assert "| net | occlusion | 0.233 ± 0.033 | 0.567 ± 0.145 | 67% | 12.5 |" in text
    assert "| net | random maps | 0.533 ± 0.033 | 0.467 ± 0.033 | – | – |" in text
