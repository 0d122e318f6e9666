from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convlens.manifest import ImageInput
from convlens_training.datasets import Dataset, Split


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two OpenMP threads on a busy machine spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of small random images: {"train/cat": 3, …} gives three PNG files in train/cat."""

    def image_folder(counts: Mapping[str, int], name: str = "animals") -> Path:
        random = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(0, 256, (9, 7, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / folder / f"{n}.png")
        return tmp_path / name

    return image_folder


@pytest.fixture(scope="session")
def digits_input() -> ImageInput:
    return ImageInput(28, 28, 1, mean=(0.13,), std=(0.31,), in_graph=True)


@pytest.fixture(scope="session")
def colours() -> Dataset:
    """Images of 64 × 64 pixels in one of three colours, with noise: easy to learn."""
    random = np.random.default_rng(1)

    def split(count: int) -> Split:
        labels = np.arange(count) % 3
        images = random.integers(0, 120, (count, 64, 64, 3))
        images[np.arange(count), :, :, labels] += 100
        return Split(images.astype(np.uint8), labels)

    return Dataset("colours", ("red", "green", "blue"), split(96), split(30))
