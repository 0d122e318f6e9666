"""What moves a network's weights: optimiser, learning rate, and their moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from convlens_training.recipes import Recipe


def make_optimiser(network: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser; biases and the weights of normalisations do not decay."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimiser == "sgd":
        return SGD(groups, recipe.learning_rate, momentum=0.9, nesterov=True)
    return AdamW(groups, recipe.learning_rate)


def make_schedule(optimiser: Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """The recipe's learning rate over a training of so many steps, to be moved on after each."""
    if recipe.schedule == "one_cycle":
        # It divides by the length of each of its two parts, less one step.
        steps = max(steps, 2)
        warm_up = min(max(recipe.warm_up, 1.5 / steps), 1 - 0.5 / steps)
        return OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps, pct_start=warm_up)
    rising = max(1, round(recipe.warm_up * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1))) / 2

    return LambdaLR(optimiser, factor)


def make_average(network: nn.Module, decay: float) -> AveragedModel:
    """A moving average of a network's weights and statistics, which forgets its beginning.

    After n steps the decay is at most (1 + n) / (10 + n), so that a short training is not mostly its first weights.
    """

    def move(averages: Sequence[torch.Tensor], values: Sequence[torch.Tensor], count: torch.Tensor | int) -> None:
        rate = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(values), rate)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return AveragedModel(network, multi_avg_fn=move, use_buffers=True)
