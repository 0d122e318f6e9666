from __future__ import annotations

import dataclasses

import pytest
import torch

from convlens_training.optimisation import make_optimiser, make_schedule
from convlens_training.recipes import RECIPES, Augmentation, ImageSize


@pytest.mark.parametrize("name", RECIPES)
def test_the_figures_are_possible(name):
    recipe = RECIPES[name]
    how = recipe.augmentation
    assert recipe.name == name
    assert recipe.epochs >= 1
    assert recipe.batch_size >= 1
    assert recipe.learning_rate > 0
    assert 0 <= recipe.warm_up < 1
    assert 0 <= recipe.label_smoothing < 1
    assert recipe.weight_decay >= 0
    assert recipe.clip is None or recipe.clip > 0
    assert recipe.ema is None or 0 < recipe.ema < 1
    assert 0 <= recipe.calm < recipe.epochs
    assert how.mixup + how.cutmix <= 1
    assert all(0 <= chance <= 1 for chance in (how.flip, how.erase, how.mixup, how.cutmix))
    assert 0 < how.scale[0] <= how.scale[1]
    assert how.beyond in ("border", "reflection")


@pytest.mark.parametrize("name", RECIPES)
def test_the_loop_takes_it(name):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    optimiser = make_optimiser(network, RECIPES[name])
    schedule = make_schedule(optimiser, RECIPES[name], 10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert max(rates) <= RECIPES[name].learning_rate * (1 + 1e-9)
    assert rates[-1] < max(rates)


def test_digits_are_never_mirrored():
    assert RECIPES["digits"].augmentation.flip == 0


def test_plain_changes_no_image():
    assert RECIPES["plain"].augmentation == Augmentation()


def test_recipes_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["plain"].epochs = 3


def test_a_size_as_text():
    assert str(ImageSize(28, 30, 1)) == "28 × 30 × 1"
