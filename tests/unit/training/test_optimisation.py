from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convlens_training.optimisation import make_average, make_optimiser, make_schedule
from convlens_training.recipes import RECIPES

RECIPE = dataclasses.replace(RECIPES["plain"], learning_rate=0.5, warm_up=0.25, weight_decay=0.1)


def rates(recipe, steps):
    """The learning rate of each step."""
    optimiser = make_optimiser(nn.Linear(1, 1), recipe)
    schedule = make_schedule(optimiser, recipe, steps)
    used = []
    for _ in range(steps):
        used.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return used


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_only_matrices_and_kernels_decay(name, kind):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimiser = make_optimiser(network, dataclasses.replace(RECIPE, optimiser=name))
    assert type(optimiser) is kind
    decaying, others = optimiser.param_groups
    assert [tuple(weight.shape) for weight in decaying["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert [tuple(weight.shape) for weight in others["params"]] == [(4,), (4,), (4,), (2,)]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0)
    assert decaying["lr"] == others["lr"] == 0.5
    if name == "sgd":
        assert (decaying["momentum"], decaying["nesterov"]) == (0.9, True)


def test_one_cycle():
    used = rates(RECIPE, 100)
    assert used[0] == pytest.approx(0.5 / 25)
    assert used[24] == max(used) == pytest.approx(0.5)
    assert used[:25] == sorted(used[:25])
    assert used[24:] == sorted(used[24:], reverse=True)
    assert used[-1] < 1e-5


def test_cosine():
    used = rates(dataclasses.replace(RECIPE, schedule="cosine"), 100)
    assert used[:25] == pytest.approx([0.5 * step / 25 for step in range(1, 26)])
    assert used[25:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 76)) for step in range(1, 76)])
    assert used[-1] < 1e-3


@given(st.integers(1, 40), st.sampled_from(["one_cycle", "cosine"]), st.sampled_from([0, 0.05, 0.2, 0.25, 0.5, 1]))
def test_trainings_of_a_few_steps(steps, schedule, warm_up):
    used = rates(dataclasses.replace(RECIPE, schedule=schedule, warm_up=warm_up), steps)
    assert len(used) == steps
    assert all(0 <= rate <= 0.5 * (1 + 1e-9) for rate in used)
    assert max(used) > 0


def test_average_by_hand():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = make_average(network, 0.4)
    expected_weight = expected_mean = None
    for n in range(6):
        with torch.no_grad():
            network[0].weight.fill_(n * n)
            network[1].running_mean.fill_(10 - n)
        network[1].num_batches_tracked.fill_(3 * n)
        average.update_parameters(network)
        if n == 0:
            expected_weight, expected_mean = 0.0, 10.0
        else:
            decay = min(0.4, (1 + n) / (10 + n))
            expected_weight = decay * expected_weight + (1 - decay) * n * n
            expected_mean = decay * expected_mean + (1 - decay) * (10 - n)
        weights = average.module
        assert weights[0].weight.item() == pytest.approx(expected_weight)
        assert float(weights[1].running_mean) == pytest.approx(expected_mean)
        assert int(weights[1].num_batches_tracked) == 3 * n
    assert network[0].weight.item() == 25, "the network itself stays as it is"
