from __future__ import annotations

import numpy as np
import pytest
import torch

from convlens.manifest import ImageInput
from convlens_training import networks
from convlens_training.recipes import NETWORKS

LECTURE = {"conv_1": 320, "conv_2": 18_496, "dense_1": 1_179_776, "output": 1_290}
TINY_VGG = {"conv_1_1": 280, "conv_1_2": 910, "conv_2_1": 910, "conv_2_2": 910, "output": 16_910}


@pytest.mark.parametrize(
    ("name", "expected", "total"), [("lecture_cnn", LECTURE, 1_199_882), ("tiny_vgg", TINY_VGG, 19_920)]
)
def test_parameters_and_shapes(name, expected, total):
    size = NETWORKS[name].size
    network = networks.build(name, ImageInput(size.height, size.width, size.channels), 10)
    counts = {key: sum(p.numel() for p in module.parameters()) for key, module in network.named_children()}
    assert {key: count for key, count in counts.items() if count} == expected
    assert sum(counts.values()) == total
    scores = network(torch.zeros(3, size.height, size.width, size.channels, dtype=torch.uint8))
    assert scores.shape == (3, 10)
    torch.testing.assert_close(scores.sum(1), torch.ones(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_classes(name):
    size = NETWORKS[name].size
    network = networks.build(name, ImageInput(size.height, size.width, size.channels), 3)
    assert network(torch.zeros(1, size.height, size.width, size.channels, dtype=torch.uint8)).shape == (1, 3)


def test_preprocessing_is_the_manifests_arithmetic():
    image = ImageInput(2, 3, 3, value_range=(-1.0, 1.0), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3), np.uint8)
    expected = (pixels / 255 * 2 - 1 - np.array(image.mean)) / np.array(image.std)
    made = networks.Preprocess(image)(torch.from_numpy(pixels)).numpy()
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_without_ends_gives_logits_of_the_same_modules():
    network = networks.build("tiny_vgg", ImageInput(64, 64, 3), 4).eval()
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    logits = networks.without_ends(network)(network[0](pixels))
    torch.testing.assert_close(torch.softmax(logits, 1), network(pixels))
