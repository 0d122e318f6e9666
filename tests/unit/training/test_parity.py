from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from convlens_training import datasets, export, fitting, networks, parity
from convlens_training.errors import TrainingError


@pytest.fixture(scope="module")
def exported(digits_input):
    """A network with random weights, and the model made of it."""
    torch.manual_seed(0)
    network = networks.build("lecture_cnn", digits_input, 10)
    return network, export.to_onnx(network, (28, 28, 1))


@pytest.fixture(scope="module")
def held_out():
    """More than what runs at once, and not a multiple of it."""
    random = np.random.default_rng(0)
    return datasets.Split(random.integers(0, 256, (700, 28, 28, 1), np.uint8), random.integers(0, 10, 700))


@pytest.fixture(scope="module")
def original(exported, held_out):
    return fitting.logits_of(exported[0], held_out.images, torch.device("cpu"))


def test_an_export_computes_what_torch_does(exported, held_out, original):
    measured = parity.check(exported[1], original, held_out, 1)
    assert 0 <= measured.max_logit_difference < 1e-4
    assert measured.label_agreement == 1
    assert measured.accuracy == (original.argmax(1) == held_out.labels).mean()
    assert 0.02 < measured.accuracy < 0.25
    np.testing.assert_allclose(measured.logits, original, atol=1e-4)


def test_every_image_counts(exported, held_out, original):
    """One logit of the last image, beyond the last whole batch, that is not torch's, is found."""
    other = original.copy()
    other[-1, original[-1].argmin()] = original[-1].max() + 5
    measured = parity.compare(exported[1], other, held_out, 1)
    assert measured.max_logit_difference == pytest.approx(np.ptp(original[-1]) + 5, abs=1e-3)
    assert measured.label_agreement == 699 / 700
    with pytest.raises(TrainingError, match=r"differ from torch's by up to .* nothing was published"):
        parity.check(exported[1], other, held_out, 1)


@pytest.mark.parametrize(("change", "shown"), [(0.01, r"0\.01"), (float("nan"), "nan")])
def test_other_logits_are_refused(exported, held_out, original, change, shown):
    other = original + np.float32(change) * (np.arange(10) == 3)
    with pytest.raises(TrainingError) as caught:
        parity.check(exported[1], other, held_out, 1)
    caught.match(rf"differ from torch's by up to {shown} on the held-out images, more than 0\.001")
    caught.match(f"here {torch.__version__.split('+')[0]}.* and {onnxruntime.__version__}")


def test_a_difference_within_the_limit_is_accepted_and_told(exported, held_out, original):
    measured = parity.check(exported[1], original + np.float32(5e-4), held_out, 1)
    assert measured.max_logit_difference == pytest.approx(5e-4, abs=1e-4)
