"""Trains a network on images in memory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from convlens_training.datasets import Dataset
from convlens_training.errors import TrainingError
from convlens_training.networks import without_ends
from convlens_training.recipes import Augmentation, Recipe

# Held-out images are computed in batches of this many: beyond it nothing gets faster, and memory grows.
_EVALUATION_BATCH = 500


def fit(network: nn.Sequential, dataset: Dataset, recipe: Recipe, device: torch.device) -> None:
    """Trains a network in place; what it becomes depends on torch's random numbers.

    Progress and each epoch's figures go to standard error. The held-out images are only looked at, never used: the
    weights are those after the last epoch, whichever epoch was best on them.

    Args:
        network: As `networks.build` makes them, on the device.
        dataset: Of the network's image size and number of classes.
        recipe: How.
        device: Where.

    Raises:
        TrainingError: The loss is no longer a finite number.
    """
    images, labels = torch.from_numpy(dataset.train.images), torch.from_numpy(dataset.train.labels)
    steps = math.ceil(len(images) / recipe.batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * steps, pct_start=recipe.warm_up
    )
    body = without_ends(network)
    for epoch in range(1, recipe.epochs + 1):
        start, loss_sum, right, seen = time.perf_counter(), 0.0, 0, 0
        network.train()
        # disable=None: no bar where standard error is no terminal.
        with tqdm(total=steps, desc=f"epoch {epoch}/{recipe.epochs}", unit="step", leave=False, disable=None) as bar:
            order = torch.randperm(len(images))
            for first in range(0, len(images), recipe.batch_size):
                batch = order[first : first + recipe.batch_size]
                targets = labels[batch].to(device)
                values = augmented(network[0](images[batch].to(device)), recipe.augmentation)
                logits = body(values)
                loss = functional.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
                seen += len(batch)
                loss_sum += loss.item() * len(batch)
                right += int((logits.argmax(1) == targets).sum())
                bar.set_postfix(loss=f"{loss_sum / seen:.4f}", accuracy=f"{right / seen:.2%}", refresh=False)
                bar.update()
        if not math.isfinite(loss_sum):
            raise TrainingError(
                f"the loss became {loss_sum} in epoch {epoch} of {recipe.epochs}: give a --learning-rate lower than "
                f"{recipe.learning_rate:g}"
            )
        held_out = accuracy(logits_of(network, dataset.test.images, device), dataset.test.labels)
        print(
            f"epoch {epoch}/{recipe.epochs}: loss {loss_sum / seen:.4f}, accuracy {right / seen:.2%} in training, "
            f"{held_out:.2%} held out, {time.perf_counter() - start:.1f} s",
            file=sys.stderr,
            flush=True,
        )


def augmented(values: torch.Tensor, how: Augmentation) -> torch.Tensor:
    """Turns, moves, enlarges, shears and flips each image of a batch by its own random amounts.

    Args:
        values: float32 N × channels × height × width.
        how: By how much at most.

    Returns:
        float32 of the same shape.
    """
    # One grid for the batch: torchvision's transforms draw one set of amounts for all the images they are given.
    count = len(values)

    def uniform(low: float, high: float) -> torch.Tensor:
        # From the CPU's random numbers on every device, so that a seed means the same.
        return torch.empty(count).uniform_(low, high)

    angle = uniform(-how.degrees, how.degrees) * (math.pi / 180)
    shrink = 1 / uniform(*how.scale)
    shear = uniform(-how.shear, how.shear)
    mirror = torch.where(torch.rand(count) < how.flip, -1.0, 1.0)
    cos, sin = angle.cos() * shrink, angle.sin() * shrink
    # The grid's coordinates are −1 … 1: a shift by a fraction of the image is twice that.
    x = torch.stack([cos * mirror, cos * shear - sin, uniform(-2 * how.shift, 2 * how.shift)], 1)
    y = torch.stack([sin * mirror, sin * shear + cos, uniform(-2 * how.shift, 2 * how.shift)], 1)
    grid = functional.affine_grid(torch.stack([x, y], 1).to(values.device), list(values.shape), align_corners=False)
    return functional.grid_sample(values, grid, padding_mode=how.beyond, align_corners=False)


def logits_of(network: nn.Sequential, images: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.float32]:
    """The logits of images, N × classes, with dropout off."""
    network.eval()
    with torch.inference_mode():
        logits = [network[:-1](torch.from_numpy(batch).to(device)).cpu().numpy() for batch in batches(images)]
    return np.concatenate(logits)


def batches(images: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """The images in runs, in their order."""
    for start in range(0, len(images), _EVALUATION_BATCH):
        yield images[start : start + _EVALUATION_BATCH]


def accuracy(values: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The fraction of images whose highest score or logit (N × classes) is that of their label."""
    return float((values.argmax(1) == labels).mean())
