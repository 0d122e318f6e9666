"""Gives the training loop its batches, in an order and with changes that only seed and epoch decide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from convlens_training import augmentation
from convlens_training.datasets import Split
from convlens_training.errors import TrainingError
from convlens_training.recipes import Recipe


@dataclass(frozen=True, slots=True)
class Part:
    """One process's part of a batch.

    Attributes:
        indices: int64 n, which of the training images.
        amounts: float32 n × augmentation.AMOUNTS, random.
        share: What the mean over these images is to be multiplied by, so that the mean over processes is the batch's.
    """

    indices: torch.Tensor
    amounts: torch.Tensor
    share: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step takes.

    Attributes:
        values: float32 n × channels × height × width, normalised and changed.
        targets: int64 n, class indices, or float32 n × classes where images were mixed.
        share: As in Part.
    """

    values: torch.Tensor
    targets: torch.Tensor
    share: float


class Feed:
    """Batches of training images for one of several processes.

    Args:
        split: The training images, kept as uint8; on a GPU too, if a quarter of its free memory holds them.
        preprocess: From uint8 to a network's values.
        recipe: How large batches are and how images are changed.
        seed: Decides order and changes, together with the epoch; the number of processes does not.
        classes: How many there are.
        device: Where batches go.
        rank: Of this process.
        processes: How many there are.

    Raises:
        TrainingError: There are fewer images than processes.
    """

    def __init__(
        self,
        split: Split,
        preprocess: torch.nn.Module,
        recipe: Recipe,
        seed: int,
        classes: int,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.images = len(split.labels)
        if self.images < processes:
            raise TrainingError(
                f"there are {self.images} training images for {processes} processes, which need one each: start fewer"
            )
        # In batches of equal size but for one image, so that none is too small for a normalisation or for the
        # processes.
        self.steps = max(1, min(math.ceil(self.images / recipe.batch_size), self.images // processes))
        self._pixels, self._labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
        if device.type == "cuda" and self._pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
            self._pixels, self._labels = self._pixels.to(device), self._labels.to(device)
        self._preprocess, self._recipe, self._classes = preprocess, recipe, classes
        self._seed, self._device, self._rank, self._processes = seed, device, rank, processes

    def parts(self, epoch: int) -> Iterator[Part]:
        """This process's part of each of an epoch's batches."""
        random = torch.Generator().manual_seed(number(self._seed, epoch))
        order = torch.randperm(self.images, generator=random)
        amounts = torch.rand(self.images, augmentation.AMOUNTS, generator=random)
        bounds = [step * self.images // self.steps for step in range(self.steps + 1)]
        for first, last in pairwise(bounds):
            mine = slice(first + self._rank, last, self._processes)
            share = len(order[mine]) * self._processes / (last - first)
            yield Part(order[mine], amounts[mine], share)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This process's batches of an epoch; sets torch's random numbers to the epoch's, for dropout and mixing."""
        torch.manual_seed(number(self._seed, epoch, self._rank + 1))
        how = self._recipe.augmentation
        if epoch > self._recipe.epochs - self._recipe.calm:
            how = replace(how, erase=0, mixup=0, cutmix=0)
        for part in self.parts(epoch):
            indices = part.indices.to(self._pixels.device)
            pixels, targets = self._pixels[indices].to(self._device), self._labels[indices].to(self._device)
            values = augmentation.augmented(self._preprocess(pixels), how, part.amounts.to(self._device))
            yield Batch(*augmentation.mixed(values, targets, how, self._classes), part.share)


def number(*parts: int) -> int:
    """A seed for torch made of several numbers, so that neighbouring ones have nothing in common."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
