"""The training loop, and what a network answers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from convlens_training.checkpoints import Checkpoints
from convlens_training.datasets import Dataset, Split
from convlens_training.errors import TrainingError
from convlens_training.feed import Batch, Feed
from convlens_training.networks import without_ends
from convlens_training.optimisation import make_average, make_optimiser, make_schedule
from convlens_training.recipes import Recipe

# Held-out images are computed in batches of this many: beyond it nothing gets faster, and memory grows.
_EVALUATION_BATCH = 500
# … or fewer of large images, so that these pixels take no more memory than 500 images of 64 × 64.
_EVALUATION_PIXELS = _EVALUATION_BATCH * 64 * 64
# The progress bar shows the loss so often; reading it waits for a GPU.
_SHOWN_EVERY = 20


def fit(
    fabric: Fabric,
    network: nn.Sequential,
    dataset: Dataset,
    recipe: Recipe,
    checkpoints: Checkpoints,
    *,
    seed: int,
    patience: int | None = None,
    state: Mapping[str, Any] | None = None,
    log: Callable[[Mapping[str, float]], None] = lambda metrics: None,
) -> int:
    """Trains a network in place.

    After each epoch a checkpoint is written, and the epoch's figures go to `log` and to standard error. Where the data
    has a validation part the weights are in the end those of the epoch that was best on it. Where it has none they are
    those after the last epoch; the held-out images are only looked at.

    Args:
        fabric: Launched.
        network: As `networks.build` makes them.
        dataset: Of the network's image size and number of classes.
        recipe: How.
        checkpoints: Where to write them; only the first process does.
        seed: Decides order, augmentation and dropout of each epoch; the weights' first values are the network's.
        patience: Stop after so many epochs in a row without a better one; None goes on to the recipe's last.
        state: Of a checkpoint, to go on from.
        log: Takes an epoch's figures, as `RunFolder.log` does; called in the first process only.

    Returns:
        The epoch whose weights the network has.

    Raises:
        TrainingError: The loss is no longer a finite number, a checkpoint cannot be written, or there are fewer images
            than processes.
    """
    training = _Training(fabric, network, dataset, recipe, seed)
    watched, part = (dataset.validation, "validation") if dataset.validation else (dataset.test, "held out")
    epoch, best = 0, (-1.0, 0.0, 0)  # accuracy, negative loss, epoch
    if state is not None:
        training.load(state)
        epoch, best = state["epoch"], tuple(state["best"])
    while epoch < recipe.epochs and (patience is None or epoch - best[2] < patience):
        epoch += 1
        figures = training.epoch(epoch)
        training.agree()
        loss, right = _measure(fabric, training.measured, watched, len(dataset.labels))
        figures |= {"validation_loss": loss, "validation_accuracy": right}
        if improved := (right, -loss) > best[:2]:
            best = (right, -loss, epoch)
        if fabric.is_global_zero:
            log(figures)
            print(_line(figures, recipe.epochs, part), file=sys.stderr, flush=True)
            whole = {"epoch": epoch, "best": list(best), **training.state()}
            checkpoints.save(whole, best=improved and dataset.validation is not None)
    chosen = best[2] if dataset.validation is not None else epoch
    if fabric.is_global_zero and chosen != epoch:
        if (kept := checkpoints.best()) is None or kept["epoch"] != chosen:
            raise TrainingError(f"{checkpoints.folder / 'best.ckpt'} is not of the best epoch, {chosen}: begin anew")
        network.load_state_dict(kept["average"] or kept["network"])
    elif training.average:
        network.load_state_dict(training.average.module.state_dict())
    return chosen


class _Training:
    """A network with all that moves it.

    Attributes:
        average: The moving average of the network's weights; None where the recipe has none.
        measured: The network whose weights are measured and published: the average, or else the network.
    """

    def __init__(self, fabric: Fabric, network: nn.Sequential, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        # Convolutions train 1.0 … 1.7 times as fast on the CPU with their weights laid out so, and on GPUs in 16 bits.
        network.to(fabric.device).to(memory_format=torch.channels_last)
        self._fabric, self._network, self._recipe, self._classes = fabric, network, recipe, len(dataset.labels)
        rank, processes = fabric.global_rank, fabric.world_size
        if len((dataset.validation or dataset.test).labels) < processes:
            raise TrainingError(f"there are fewer images to measure on than processes, {processes}: start fewer")
        self._feed = Feed(dataset.train, network[0], recipe, seed, self._classes, fabric.device, rank, processes)
        self._optimiser = make_optimiser(network, recipe)
        self._schedule = make_schedule(self._optimiser, recipe, recipe.epochs * self._feed.steps)
        self.average = make_average(network, recipe.ema) if recipe.ema else None
        self.measured = cast(nn.Sequential, self.average.module) if self.average else network
        # Of the network's modules and of the optimiser, so what follows moves those.
        self._body, self._stepper = fabric.setup(without_ends(network), self._optimiser)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Shows each image once. Returns the epoch's figures."""
        fabric, feed = self._fabric, self._feed
        start, waited, rate = time.perf_counter(), 0.0, 0.0
        loss_mean, right = _metrics(self._classes, fabric.device)
        self._network.train()
        title = f"epoch {epoch}/{self._recipe.epochs}"
        # None: no bar where standard error is no terminal.
        hidden = None if fabric.is_global_zero else True
        with tqdm(total=feed.images, desc=title, unit=" images", leave=False, disable=hidden) as bar:
            asked = start
            for number, batch in enumerate(feed.batches(epoch)):
                waited += time.perf_counter() - asked
                rate = float(self._schedule.get_last_lr()[0])
                logits, loss = self._step(batch)
                targets = batch.targets if batch.targets.ndim == 1 else batch.targets.argmax(1)
                loss_mean.update(loss, len(targets))
                right.update(logits, targets)
                if number % _SHOWN_EVERY == 0:
                    bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
                bar.update(len(targets) * fabric.world_size)
                asked = time.perf_counter()
        mean = float(loss_mean.compute())
        seconds = time.perf_counter() - start
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became {mean} in epoch {epoch} of {self._recipe.epochs}: give a --learning-rate lower than "
                f"{self._recipe.learning_rate:g}"
            )
        return {
            "epoch": epoch,
            "train_loss": mean,
            "train_accuracy": float(right.compute()),
            "learning_rate": rate,
            "images_per_second": feed.images / seconds,
            "data_wait": waited / seconds,
            "seconds": seconds,
        }

    def agree(self) -> None:
        """Gives all processes the first one's statistics of normalisations; each has seen its parts of the batches."""
        if self._fabric.world_size > 1:
            for module in {self._network, self.measured}:
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def _step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Learns from a batch. Returns logits and mean loss of this process's part of it."""
        recipe = self._recipe
        try:
            logits = self._body(batch.values)
        except ValueError as error:
            # A batch normalisation's, where a channel is a single number.
            raise TrainingError(
                f"the network cannot be trained on {len(batch.values)} images of this size at a time ({error}): give a "
                "larger --batch-size or --image-size, or more images"
            ) from None
        loss = functional.cross_entropy(logits, batch.targets, label_smoothing=recipe.label_smoothing)
        self._stepper.zero_grad()
        self._fabric.backward(loss * batch.share)
        if recipe.clip is not None:
            self._fabric.clip_gradients(self._body, self._stepper, max_norm=recipe.clip, error_if_nonfinite=False)
        self._stepper.step()
        self._schedule.step()
        if self.average:
            self.average.update_parameters(self._network)
        return logits.detach(), loss.detach()

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, but for seed and number of the epoch."""
        return {
            "network": self._network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "averaged": int(self.average.n_averaged) if self.average else 0,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        self._network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
            self.average.n_averaged.fill_(state["averaged"])


def _line(figures: Mapping[str, float], epochs: int, part: str) -> str:
    return (
        f"epoch {figures['epoch']}/{epochs}: loss {figures['train_loss']:.4f}, "
        f"accuracy {figures['train_accuracy']:.2%} in training, {figures['validation_accuracy']:.2%} {part}, "
        f"{figures['seconds']:.1f} s, {figures['images_per_second']:.0f} images/s, "
        f"{figures['data_wait']:.1%} of the time waiting for data"
    )


def _metrics(classes: int, device: torch.device) -> tuple[MeanMetric, MulticlassAccuracy]:
    # Without their checks, each of which would wait for a GPU. Over several processes they add up by themselves.
    accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
    return MeanMetric(nan_strategy="disable").to(device), accuracy.to(device)


def _measure(fabric: Fabric, network: nn.Sequential, split: Split, classes: int) -> tuple[float, float]:
    """Loss and accuracy on images, each process computing its share of them."""
    loss, right = _metrics(classes, fabric.device)
    network.eval()
    mine = slice(fabric.global_rank, None, fabric.world_size)
    labels = torch.from_numpy(split.labels[mine]).to(fabric.device)
    with torch.inference_mode():
        for pixels in batches(split.images[mine]):
            logits = network[:-1](torch.from_numpy(pixels).to(fabric.device))
            targets, labels = labels[: len(pixels)], labels[len(pixels) :]
            loss.update(functional.cross_entropy(logits, targets), len(targets))
            right.update(logits, targets)
    return float(loss.compute()), float(right.compute())


def logits_of(network: nn.Sequential, images: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.float32]:
    """The logits of images, N × classes, with dropout off."""
    network.eval()
    with torch.inference_mode():
        logits = [network[:-1](torch.from_numpy(batch).to(device)).cpu().numpy() for batch in batches(images)]
    return np.concatenate(logits)


def batches(images: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """The images (N × height × width × channels) in runs, in their order."""
    count = max(1, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // (images.shape[1] * images.shape[2])))
    for start in range(0, len(images), count):
        yield images[start : start + count]


def accuracy(values: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The fraction of images whose highest score or logit (N × classes) is that of their label."""
    return float((values.argmax(1) == labels).mean())
