from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convlens.manifest import ImageInput
from convlens_training.datasets import Split
from convlens_training.errors import TrainingError
from convlens_training.feed import Feed, number
from convlens_training.networks import Preprocess
from convlens_training.recipes import RECIPES, Augmentation

CPU = torch.device("cpu")
PREPROCESS = Preprocess(ImageInput(8, 8, 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), in_graph=True))
PLAIN = dataclasses.replace(RECIPES["plain"], epochs=5, batch_size=6, augmentation=Augmentation())


def split(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return Split(images, np.arange(count) % 4)


def feeds(count, recipe=PLAIN, seed=0, processes=1):
    images = split(count)
    return [Feed(images, PREPROCESS, recipe, seed, 4, CPU, rank, processes) for rank in range(processes)]


def seen(count, epoch=1, **options):
    """The images of an epoch in their order, and the amounts of each."""
    (feed,) = feeds(count, **options)
    parts = list(feed.parts(epoch))
    return torch.cat([part.indices for part in parts]).tolist(), torch.cat([part.amounts for part in parts])


@given(st.integers(1, 8), st.integers(0, 200), st.integers(1, 70))
def test_each_image_once_an_epoch_by_any_number_of_processes(processes, more, batch_size):
    images = processes + more
    recipe = dataclasses.replace(PLAIN, batch_size=batch_size)
    several = feeds(images, recipe, processes=processes)
    (alone,) = feeds(images, recipe)
    assert len({feed.steps for feed in several}) == 1
    steps = list(zip(*(feed.parts(1) for feed in several), strict=True))
    assert len(steps) == several[0].steps
    amounts = {}
    sizes = []
    for parts in steps:
        counts = [len(part.indices) for part in parts]
        assert min(counts) >= 1, "each process has something to learn from in each step"
        sizes.append(sum(counts))
        # The mean over processes of their means times their shares is the mean over the batch.
        weights = [part.share / processes / count for part, count in zip(parts, counts, strict=True)]
        np.testing.assert_allclose(weights, 1 / sum(counts))
        for part in parts:
            amounts |= dict(zip(part.indices.tolist(), part.amounts.tolist(), strict=True))
    assert sum(sizes) == images
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 2 * processes - 1)
    assert sorted(amounts) == list(range(images))
    for part in alone.parts(1):
        assert [amounts[index] for index in part.indices.tolist()] == part.amounts.tolist()


def test_order_and_amounts_by_seed_and_epoch():
    order, amounts = seen(50)
    again, same = seen(50)
    assert order == again
    assert torch.equal(amounts, same)
    assert order != sorted(order)
    for other, different in (seen(50, seed=1), seen(50, epoch=2)):
        assert other != order
        assert not torch.equal(different, amounts)
    assert 0 <= amounts.min() < 0.01
    assert 0.99 < amounts.max() < 1


def test_fewer_images_than_processes():
    with pytest.raises(TrainingError, match="there are 2 training images for 3 processes, which need one each"):
        feeds(2, processes=3)


def test_values_and_labels_of_the_images():
    images = split(20)
    (feed,) = feeds(20)
    for part, batch in zip(feed.parts(3), feed.batches(3), strict=True):
        pixels = images.images[part.indices.numpy()].astype(np.float64) / 255
        expected = (pixels - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
        np.testing.assert_allclose(batch.values.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
        assert batch.targets.tolist() == images.labels[part.indices.numpy()].tolist()
        assert batch.share == part.share
    assert images.images.tobytes() == split(20).images.tobytes()


def test_what_torch_draws_differs_by_epoch_and_process():
    first, second = feeds(20, processes=2)

    def drawn(feed, epoch):
        next(feed.batches(epoch))
        return torch.rand(3).tolist()

    draws = [drawn(first, 1), drawn(second, 1), drawn(first, 2)]
    assert len({tuple(each) for each in draws}) == 3
    assert drawn(first, 1) == draws[0], "an epoch that is done again draws the same"


def test_calm_epochs_at_the_end():
    wild = Augmentation(erase=1, cutmix=1)
    (feed,) = feeds(20, dataclasses.replace(PLAIN, augmentation=wild, calm=2))
    (plain,) = feeds(20)

    def as_without(epoch):
        return all(
            torch.equal(wild.values, calm.values)
            for wild, calm in zip(feed.batches(epoch), plain.batches(epoch), strict=True)
        )

    assert [as_without(epoch) for epoch in range(1, 6)] == [False, False, False, True, True]
    assert all(batch.targets.ndim == 2 for batch in feed.batches(3))
    assert all(batch.targets.ndim == 1 for batch in feed.batches(4))


def test_seeds_of_several_numbers():
    assert len({number(seed, epoch) for seed in range(10) for epoch in range(10)}) == 100
    assert 0 <= number(2**32 - 1, 10**6, 7) < 2**63
