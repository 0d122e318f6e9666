"""Measures the training loop against a bare one in PyTorch; see README.md.

python bench/training.py                 # measures, writes bench/results/training.json, prints the table
python bench/training.py --table FILE    # prints the table of a stored result
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from command import finish, new_parser, say, say_if_busy
from convlens.manifest import ImageInput
from convlens_training import architectures, augmentation, datasets, devices, fitting, networks
from convlens_training.checkpoints import Checkpoints
from convlens_training.datasets import Dataset, Split
from convlens_training.recipes import RECIPES, Augmentation, Recipe
from machine import machine
from tables import goal, goal_table, spread, table

NETWORKS = ("lecture_cnn", "tiny_vgg", "tiny_vgg_bn")
# Small photos are drawn at random: what they show does not matter to the speed.
_PHOTOS, _CLASSES = 2000, 10
# The first epoch of a loop warms it up.
_EPOCHS = 3
# Images that are changed at random, all at once or one by one.
_CHANGED = 64


def measure(threads: int, repeats: int) -> dict[str, Any]:
    """Measures the loops in turn, and that `repeats` times.

    Args:
        threads: Of the CPU.
        repeats: Of the whole sequence.
    """
    result: dict[str, Any] = {
        "settings": {"threads": threads, "repeats": repeats},
        "machine": machine("torch", "torchvision", "lightning-fabric"),
        "repeats": [],
    }
    say_if_busy(result["machine"])
    torch.set_num_threads(threads)
    subjects = {name: (_dataset(name), RECIPES[architectures.find(name).recipe]) for name in NETWORKS}
    for n in range(repeats):
        turn: dict[str, Any] = {}
        for name, (dataset, recipe) in subjects.items():
            say(f"repeat {n + 1} of {repeats}: {name}")
            recipe = replace(recipe, epochs=_EPOCHS, calm=0)
            same = replace(recipe, augmentation=Augmentation(), clip=None, ema=None)
            turn[name] = {
                "bare": _bare(_network(name, dataset), dataset.train, same),
                "same_work": _ours(_network(name, dataset), dataset, same),
                "recipe": _ours(_network(name, dataset), dataset, recipe),
                "augmentation": _augmentation(dataset.train, recipe.augmentation),
            }
        result["repeats"].append(turn)
    result["goals"] = goals(result)
    return result


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, with the medians of the repeats."""
    rows = []
    for name in NETWORKS:
        turns = [turn[name] for turn in result["repeats"]]
        ratios = [turn["same_work"]["images_per_second"] / turn["bare"] for turn in turns]
        rows.append(goal(f"{name}: images/s of the loop ÷ bare loop, same work", ratios, low=0.9))
    for name in NETWORKS:
        waits = [turn[name]["recipe"]["data_wait"] for turn in result["repeats"]]
        rows.append(goal(f"{name}: waiting for data ÷ epoch, with all of the recipe", waits, high=0.1))
    return rows


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    settings, where = result["settings"], result["machine"]
    turns = result["repeats"]
    rows, changes = [], []
    for name in NETWORKS:
        bare = [turn[name]["bare"] for turn in turns]
        same, recipe = ([turn[name][which]["images_per_second"] for turn in turns] for which in ("same_work", "recipe"))
        shares = [whole / plain for whole, plain in zip(recipe, bare, strict=True)]
        rows.append((name, spread(bare), spread(same), spread(recipe), spread(shares)))
        together, apart = ([turn[name]["augmentation"][how] for turn in turns] for how in ("together", "one_by_one"))
        ratios = [fast / slow for fast, slow in zip(together, apart, strict=True)]
        changes.append((name, spread(together), spread(apart), spread(ratios)))
    command = f"python bench/training.py --threads {settings['threads']} --repeats {settings['repeats']}"
    return "\n\n".join(
        [
            f"Machine: {where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB; {where['kernel']}, Python "
            f"{where['python']}, torch {where['torch']}, torchvision {where['torchvision']}, lightning-fabric "
            f"{where['lightning-fabric']}; load average before: {where['load_before']:.2f}.",
            f"Command: `{command}`. Figures are medians of {len(turns)} (lowest – highest).",
            goal_table(goals(result)),
            table(
                ("network", "bare loop images/s", "ours, same work", "ours, all of the recipe", "recipe ÷ bare"), rows
            ),
            table(("augmentation of", "a batch at once images/s", "one by one, `transforms.v2`", "ratio"), changes),
        ]
    )


def _dataset(name: str) -> Dataset:
    size = architectures.find(name).size
    if size.channels == 1:
        return datasets.load("mnist5k", size, None, 0)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (_PHOTOS + 100, size.height, size.width, size.channels), np.uint8)
    labels = random.integers(0, _CLASSES, len(images))
    train, test = (Split(images[part], labels[part]) for part in (slice(100, None), slice(0, 100)))
    return Dataset("noise", tuple(map(str, range(_CLASSES))), train, test)


def _network(name: str, dataset: Dataset) -> nn.Sequential:
    size = architectures.find(name).size
    torch.manual_seed(0)
    middle = (0.5,) * size.channels
    image = ImageInput(size.height, size.width, size.channels, mean=middle, std=middle, in_graph=True)
    return networks.build(name, image, len(dataset.labels))


def _bare(network: nn.Sequential, split: Split, recipe: Recipe) -> float:
    """Images a second of the shortest loop in PyTorch that trains the same network on the same images."""
    preprocess, body = network[0], network[1:-1]
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    optimiser = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    # Of the learning rate only the warm-up's first values are used: what is learned does not matter here.
    rates = []
    network.train()
    for _ in range(recipe.epochs):
        start = time.perf_counter()
        for batch in torch.split(torch.randperm(len(labels)), recipe.batch_size):
            logits = body(preprocess(images[batch]))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        rates.append(len(labels) / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def _ours(network: nn.Sequential, dataset: Dataset, recipe: Recipe) -> dict[str, float]:
    fabric = devices.make_fabric("cpu", 1, 1, "off")
    fabric.launch()
    logged: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        fitting.fit(
            fabric,
            network,
            dataset,
            recipe,
            Checkpoints(Path(folder), {}),
            seed=0,
            log=lambda figures: logged.append(dict(figures)),
        )
    names = ("images_per_second", "data_wait")
    return {name: statistics.median(figures[name] for figures in logged[1:]) for name in names}


def _augmentation(split: Split, how: Augmentation) -> dict[str, float]:
    """Images a second that are changed at random: a batch at once as the loop does it, and one by one by v2."""
    values = torch.from_numpy(split.images[:_CHANGED]).permute(0, 3, 1, 2).float() / 127.5 - 1
    # The same changes as far as torchvision has them; those of colours it makes in other units.
    steps: list[nn.Module] = [
        v2.RandomAffine(
            how.degrees,
            (how.shift, how.shift),
            how.scale,
            float(np.degrees(np.arctan(how.shear))),
            v2.InterpolationMode.BILINEAR,
        )
    ]
    if how.flip:
        steps.append(v2.RandomHorizontalFlip(how.flip))
    if how.colour:
        steps.append(v2.ColorJitter(how.colour, how.colour, how.colour))
    if how.erase:
        steps.append(v2.RandomErasing(how.erase))
    change = v2.Compose(steps)
    # ColorJitter takes values from 0 to 1.
    positive = (values + 1) / 2

    def together() -> None:
        augmentation.augmented(values, how, torch.rand(len(values), augmentation.AMOUNTS))

    def one_by_one() -> None:
        torch.stack([change(image) for image in positive])

    rates = {}
    for name, work in (("together", together), ("one_by_one", one_by_one)):
        work()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        rates[name] = len(values) / statistics.median(seconds)
    return rates


def main() -> int:
    """Measures or shows; returns the exit code."""
    parser = new_parser("training", __doc__)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)d)")
    parser.add_argument("--repeats", type=int, default=3, help="of the whole sequence (%(default)d)")
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return finish("training", arguments, lambda: measure(arguments.threads, arguments.repeats), render)


if __name__ == "__main__":
    sys.exit(main())
