from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from convlens.manifest import ImageInput
from convlens_training import fitting, networks
from convlens_training.errors import TrainingError
from convlens_training.recipes import NETWORKS, Augmentation

NOTHING = Augmentation(degrees=0, shift=0, scale=(1, 1), shear=0, flip=0, beyond="border")
RECIPE = dataclasses.replace(NETWORKS["tiny_vgg"].recipe, epochs=4, batch_size=10, augmentation=NOTHING)
CPU = torch.device("cpu")


def values():
    torch.manual_seed(0)
    return torch.randn(40, 2, 9, 12)


def trained(dataset, recipe, seed=0):
    torch.manual_seed(seed)
    network = networks.build("tiny_vgg", ImageInput(64, 64, 3), len(dataset.labels))
    fitting.fit(network, dataset, recipe, CPU)
    return network


class TestAugmented:
    def test_by_nothing(self):
        torch.testing.assert_close(fitting.augmented(values(), NOTHING), values())

    def test_flip(self):
        always = fitting.augmented(values(), dataclasses.replace(NOTHING, flip=1))
        torch.testing.assert_close(always, values().flip(3))
        half = fitting.augmented(values(), dataclasses.replace(NOTHING, flip=0.5))
        flipped = [torch.allclose(made, image.flip(2), atol=1e-5) for made, image in zip(half, values(), strict=True)]
        kept = [torch.allclose(made, image, atol=1e-5) for made, image in zip(half, values(), strict=True)]
        assert 5 < sum(flipped) < 35
        assert sum(flipped) + sum(kept) == 40

    def test_each_image_by_its_own_amounts(self):
        image = values()[:1].expand(6, -1, -1, -1)
        for change in ({"degrees": 20}, {"shift": 0.2}, {"scale": (0.7, 1.3)}, {"shear": 0.3}):
            made = fitting.augmented(image, dataclasses.replace(NOTHING, **change))
            assert made.shape == image.shape
            assert len({one.numpy().tobytes() for one in made}) == 6

    def test_enlarging(self):
        # A bright square of 4 × 4 in the middle becomes one of 8 × 8.
        image = torch.zeros(1, 1, 16, 16)
        image[..., 6:10, 6:10] = 1
        made = fitting.augmented(image, dataclasses.replace(NOTHING, scale=(2, 2)))
        assert int((made > 0.5).sum()) == 64
        assert made[0, 0, 4:12, 4:12].min() > 0.5

    def test_beyond_the_edge(self):
        image = torch.ones(1, 1, 8, 8)
        for beyond in ("border", "reflection"):
            how = Augmentation(degrees=45, shift=0.5, scale=(0.5, 0.5), shear=0.3, flip=0.5, beyond=beyond)
            torch.testing.assert_close(fitting.augmented(image, how), image)


class TestFit:
    def test_learns_reports_and_never_touches_the_held_out_images(self, colours, capsys):
        before = colours.test.images.copy()
        network = trained(colours, RECIPE)
        logits = fitting.logits_of(network, colours.test.images, CPU)
        assert logits.shape == (30, 3)
        assert fitting.accuracy(logits, colours.test.labels) == 1
        np.testing.assert_array_equal(before, colours.test.images)
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("held out") == 4
        assert "epoch 4/4: loss 0." in output.err

    def test_the_seed_decides(self, colours):
        recipe = dataclasses.replace(NETWORKS["tiny_vgg"].recipe, epochs=1, batch_size=40)
        first, again, other = (trained(colours, recipe, seed).state_dict()["output.weight"] for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_one_step(self, colours):
        trained(colours, dataclasses.replace(RECIPE, epochs=1, batch_size=1000))

    def test_a_loss_that_is_no_number(self, colours):
        with pytest.raises(TrainingError, match=r"in epoch \d of 4: give a --learning-rate lower than 1e\+20"):
            trained(colours, dataclasses.replace(RECIPE, learning_rate=1e20))


def test_logits_do_not_depend_on_the_batch(monkeypatch, digits_input):
    network = networks.build("lecture_cnn", digits_input, 10).train()
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    whole = fitting.logits_of(network, images, CPU)
    monkeypatch.setattr(fitting, "_EVALUATION_BATCH", 3)
    np.testing.assert_allclose(fitting.logits_of(network, images, CPU), whole, atol=1e-5)
