"""The training benchmark's goals come from its repeats, and it measures what it says it does."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import training
from convlens_training.recipes import RECIPES, Augmentation


def turn(ours, bare, wait):
    loop = {"images_per_second": ours, "data_wait": wait}
    changes = {"together": 3000.0, "one_by_one": 300.0}
    return {
        name: {"bare": bare, "same_work": loop, "recipe": loop, "augmentation": changes} for name in training.NETWORKS
    }


@pytest.fixture
def result():
    return {
        "settings": {"threads": 1, "repeats": 3},
        "machine": {
            "cpu": "Some CPU", "cores": 2, "memory_gib": 23.5, "load_before": 0.0, "kernel": "Linux 6",
            "python": "3.11", "torch": "2.14", "torchvision": "0.29", "lightning-fabric": "2.6",
        },
        "repeats": [turn(90.0, 100.0, 0.2), turn(190.0, 200.0, 0.05), turn(80.0, 100.0, 0.3)],
    }  # fmt: skip


def test_goals_are_medians_of_the_ratios_of_each_repeat(result):
    speed, *_, wait = training.goals(result)
    assert (speed["median"], speed["low"], speed["high"], speed["reached"]) == (0.9, 0.8, 0.95, True)
    assert (wait["median"], wait["reached"]) == (0.2, False)


def test_the_report_has_every_network_and_the_command(result):
    text = training.render(result)
    assert "python bench/training.py --threads 1 --repeats 3" in text
    for name in training.NETWORKS:
        assert f"| {name} | 100 (100 – 200) | 90 (80 – 190) |" in text
    assert "| 3000 | 300 | 10 |" in text


def test_both_loops_and_both_ways_of_augmentation_run():
    dataset = training._dataset("tiny_vgg")
    few = training.Split(dataset.train.images[:64], dataset.train.labels[:64])
    part = training.replace(dataset, train=few, test=few)
    recipe = training.replace(RECIPES["small_photos_norm"], epochs=2, calm=0, batch_size=32)
    same = training.replace(recipe, augmentation=Augmentation(), clip=None, ema=None)
    assert training._bare(training._network("tiny_vgg", part), part.train, same) > 0
    loop = training._ours(training._network("tiny_vgg", part), part, recipe)
    assert loop["images_per_second"] > 0
    assert 0 < loop["data_wait"] < 1
    rates = training._augmentation(part.train, recipe.augmentation)
    assert set(rates) == {"together", "one_by_one"}
    assert min(rates.values()) > 0
