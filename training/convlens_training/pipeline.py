"""The way from data to a published model."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from convlens.manifest import ImageInput, Manifest
from convlens_training import datasets, export, fitting, networks, parity
from convlens_training.errors import TrainingError
from convlens_training.publication import check_repository, publish
from convlens_training.recipes import NETWORKS, ImageSize, Recipe


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, on what, and where to.

    Attributes:
        network: One of recipes.NETWORKS.
        recipe: How.
        data: "mnist", "mnist5k" or a folder of images.
        data_root: Where MNIST's files are; None is the user's cache.
        models: The model repository.
        name: The model's name in it.
        seed: Decides everything that is random, 0 … 2³² − 1.
        threads: Of the CPU, ≥ 1.
        device: "auto", "cpu" or "cuda".
    """

    network: str
    recipe: Recipe
    data: str
    data_root: Path | None
    models: Path
    name: str
    seed: int
    threads: int
    device: str


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job; accuracies are fractions, measured on the export.

    Attributes:
        model: Its name.
        version: Published as.
        path: Of the file.
        labels: By class index.
        parameters: Trained values.
        training_images: How many it was trained on.
        test_images: How many were held out.
        test_accuracy: On the held-out images.
        max_logit_difference: Largest difference between the export's logits and torch's.
        label_agreement: Fraction of held-out images with the same class first as torch has.
        device: Where it was trained.
        seconds: The training took.
        unreadable: Files that were skipped, each with the reason.
    """

    model: str
    version: int
    path: str
    labels: tuple[str, ...]
    parameters: int
    training_images: int
    test_images: int
    test_accuracy: float
    max_logit_difference: float
    label_agreement: float
    device: str
    seconds: float
    unreadable: tuple[str, ...]


def run(job: Job) -> Result:
    """Trains, exports, compares and publishes; progress goes to standard error.

    On the CPU the same job gives the same weights, with the same releases and number of threads.

    Raises:
        TrainingError: Something is wrong; nothing was published.
    """
    check_repository(job.models, job.name)
    device = _device(job.device)
    subject = NETWORKS[job.network]
    dataset = datasets.load(job.data, subject.size, job.data_root, job.seed)
    for text in dataset.unreadable:
        print(f"skipped, unreadable: {text}", file=sys.stderr)
    image = _image_input(subject.size, dataset.train.images)
    print(
        f"{job.network} on {dataset.name}: {len(dataset.labels)} classes, {len(dataset.train.images)} images to train "
        f"on, {len(dataset.test.images)} held out, {len(dataset.unreadable)} files skipped",
        file=sys.stderr,
    )
    start = time.perf_counter()
    with _torch_settings(job.seed, job.threads, device):
        network = networks.build(job.network, image, len(dataset.labels)).to(device)
        fitting.fit(network, dataset, job.recipe, device)
        seconds = time.perf_counter() - start
        model = export.to_onnx(network, (image.height, image.width, image.channels))
        measured = parity.check(model, network, dataset.test, job.threads)
    print(
        f"the export's logits differ from torch's by at most {measured.max_logit_difference:.2g} "
        f"(limit {parity.MAX_LOGIT_DIFFERENCE:g}); same class first on {measured.label_agreement:.2%} of the images",
        file=sys.stderr,
    )
    manifest = Manifest(
        labels=dataset.labels,
        input=image,
        description=f"{subject.description}; trained on {dataset.name}",
        metrics={"test_accuracy": measured.accuracy},
        training={
            "network": job.network,
            "data": {
                "name": dataset.name,
                "training_images": len(dataset.train.images),
                "test_images": len(dataset.test.images),
            },
            "recipe": asdict(job.recipe),
            "seed": job.seed,
            "versions": {"convlens": metadata.version("convlens"), "torch": torch.__version__},
        },
    )
    published = publish(export.with_manifest(model, manifest), job.models, job.name)
    return Result(
        model=job.name,
        version=published.version,
        path=str(published.path),
        labels=dataset.labels,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        training_images=len(dataset.train.images),
        test_images=len(dataset.test.images),
        test_accuracy=measured.accuracy,
        max_logit_difference=measured.max_logit_difference,
        label_agreement=measured.label_agreement,
        device=str(device),
        seconds=seconds,
        unreadable=dataset.unreadable,
    )


def _device(wanted: str) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise TrainingError(
            "--device cuda: torch finds no CUDA device; install a driver and a torch built for it, or use --device cpu"
        )
    device = torch.device("cuda" if available and wanted != "cpu" else "cpu")
    if wanted == "auto":
        reason = "torch finds a CUDA device" if available else "torch finds no CUDA device"
        print(f"training on {device}: {reason}", file=sys.stderr)
    return device


@contextlib.contextmanager
def _torch_settings(seed: int, threads: int, device: torch.device) -> Iterator[None]:
    """Sets what torch keeps for the whole process, and puts it back."""
    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = True
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.backends.cudnn.deterministic = deterministic


def _image_input(size: ImageSize, images: np.ndarray) -> ImageInput:
    """The image with its normalisation: mean 0 and standard deviation 1 over the training images, by channel."""
    # By channel from the counts of the 256 values: exact, and without a copy of all images in float64.
    values = np.arange(256) / 255
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(size.channels)]
    means = [float(np.average(values, weights=count)) for count in counts]
    deviations = [
        float(np.sqrt(np.average((values - mean) ** 2, weights=count)))
        for mean, count in zip(means, counts, strict=True)
    ]
    return ImageInput(
        size.height,
        size.width,
        size.channels,
        mean=tuple(round(mean, 4) for mean in means),
        # Where all pixels are equal there is nothing to scale by.
        std=tuple(round(max(deviation, 1 / 255), 4) for deviation in deviations),
        in_graph=True,
    )
