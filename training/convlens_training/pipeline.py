"""The way from data to a published model."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from lightning_fabric import Fabric
from torch import nn

from convlens.manifest import PRECISIONS, ImageInput, Manifest, file_name
from convlens_training import architectures, datasets, devices, export, fitting, networks, variants
from convlens_training.architectures.network import Network
from convlens_training.checkpoints import Checkpoints
from convlens_training.datasets import Dataset
from convlens_training.environment import commit
from convlens_training.errors import TrainingError
from convlens_training.evaluation import Evaluation
from convlens_training.jobs import Job, Result
from convlens_training.publication import Published, check_repository, publish
from convlens_training.recipes import ImageSize
from convlens_training.report import write_report
from convlens_training.runs import RunFolder
from convlens_training.samples import samples

# Of more classes than this, only the smallest and the largest are printed.
_CLASSES_SHOWN = 30


def run(job: Job) -> Result | None:
    """Trains, exports, compares, publishes and reports; progress goes to standard error.

    On the CPU the same job gives the same weights, with the same releases and number of threads, whether or not it was
    interrupted and resumed.

    Returns:
        What came of it; None in all processes but the first.

    Raises:
        TrainingError: Something is wrong; nothing was published.
    """
    check_repository(job.models, job.name)
    subject = architectures.find(job.network)
    size = _size(job, subject)
    if job.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise TrainingError("--tensorboard needs tensorboard, which is not installed: pip install tensorboard")
    fabric = devices.make_fabric(job.device, job.devices, job.nodes, job.mixed_precision)
    fabric.launch()
    try:
        if job.device == "auto":
            found = "a" if fabric.device.type == "cuda" else "no"
            _say(fabric, f"training on {fabric.device.type}: torch finds {found} CUDA device")
        dataset = _load(job, size, fabric)
        with _torch_settings(job.seed, job.threads, fabric.device):
            return _run(job, subject, size, dataset, fabric)
    except BaseException as error:
        devices.end_others(fabric)
        if devices.is_loss_of_another(error):
            raise TrainingError("another process of this training has ended: what it says itself tells why") from None
        raise


def _run(job: Job, subject: Network, size: ImageSize, dataset: Dataset, fabric: Fabric) -> Result | None:
    if fabric.broadcast(dataset.sha256) != dataset.sha256:
        raise TrainingError(
            f"the images of {job.data} here are not those that the first process has: copy the data to all machines"
        )
    image = _image_input(size, dataset.train.images, subject.normalisation if job.weights else None)
    network = networks.build(job.network, image, len(dataset.labels))
    if job.weights:
        networks.load_weights(network, job.network, job.weights, size, len(dataset.labels))
    record = RunFolder(fabric.broadcast(_run_folder(job).path if fabric.is_global_zero else Path()))
    identity = {
        "network": job.network,
        "labels": list(dataset.labels),
        "data": dataset.sha256,
        # As it is after reading a checkpoint, where tuples are lists.
        "recipe": _plain(asdict(job.recipe)),
        "seed": job.seed,
    }
    checkpoints = Checkpoints(record.checkpoints, identity)
    state = fabric.broadcast(checkpoints.last() if fabric.is_global_zero and job.resume else None)
    done = state["epoch"] if state else 0
    _say(fabric, f"run {record.path}" + (f", going on after epoch {done}" if job.resume else ""))
    start = time.perf_counter()
    with _logs(job, record, done, fabric.is_global_zero) as log:
        epoch = fitting.fit(
            fabric,
            network,
            dataset,
            job.recipe,
            checkpoints,
            seed=job.seed,
            patience=job.patience,
            state=state,
            log=log,
        )
    seconds = time.perf_counter() - start
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not fabric.is_global_zero:
        return None
    return _publish(job, subject, dataset, image, network, record, epoch, seconds, str(fabric.device.type))


def _publish(
    job: Job,
    subject: Network,
    dataset: Dataset,
    image: ImageInput,
    network: nn.Sequential,
    record: RunFolder,
    epoch: int,
    seconds: float,
    device: str,
) -> Result:
    print(f"exporting to ONNX as {', '.join(PRECISIONS)}, to compare and to time them", file=sys.stderr)
    model = export.to_onnx(network, (image.height, image.width, image.channels))
    validation_images = len(dataset.validation.labels) if dataset.validation else 0
    manifest = Manifest(
        labels=dataset.labels,
        input=image,
        description=f"{subject.description}; trained on {dataset.name}",
        training={
            "network": job.network,
            "data": {
                "name": dataset.name,
                "sha256": dataset.sha256,
                "training_images": len(dataset.train.images),
                "validation_images": validation_images,
                "test_images": len(dataset.test.images),
            },
            "recipe": asdict(job.recipe),
            "epoch": epoch,
            "seed": job.seed,
            "weights": job.weights.name if job.weights else None,
            "commit": commit(),
            "versions": {"convlens": metadata.version("convlens"), "torch": torch.__version__},
        },
    )
    exports = variants.make_exports(
        model,
        manifest,
        fitting.logits_of(network, dataset.test.images, torch.device("cpu")),
        dataset.train.images,
        dataset.test,
        max_drop=job.max_drop,
        threads=job.threads,
    )
    measured = exports.parity
    print(
        f"the export's logits differ from torch's by at most {measured.max_logit_difference:.2g}; "
        f"same class first on {measured.label_agreement:.2%} of the images",
        file=sys.stderr,
    )
    for variant in exports.variants:
        print(
            f"{variant.precision}: {'published' if variant.published else 'not published'}: {variant.reason}",
            file=sys.stderr,
        )
    # First where a full disk harms nobody.
    files = exports.files() | samples(dataset.labels, dataset.test)
    record.write_export(files)
    # A run that was killed between publication and report has been published.
    before = _published(files, job.models / job.name) if job.resume else None
    published = before or publish(files, job.models, job.name)
    result = Result(
        model=job.name,
        version=published.version,
        path=str(published.path),
        run=str(record.path),
        labels=dataset.labels,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        training_images=len(dataset.train.images),
        validation_images=validation_images,
        test_images=len(dataset.test.images),
        epoch=epoch,
        test_accuracy=measured.accuracy,
        max_logit_difference=measured.max_logit_difference,
        label_agreement=measured.label_agreement,
        variants=tuple(variant.figures() for variant in exports.variants),
        timings=tuple(exports.speeds()),
        device=device,
        seconds=seconds,
        unreadable=dataset.unreadable,
    )
    exported = asdict(result)
    for name in ("labels", "run", "unreadable"):
        del exported[name]
    exported |= {"opset": export.OPSET, "ir_version": export.IR_VERSION, "onnx": onnx.__version__}
    evaluation = Evaluation(dataset.labels, dataset.test.labels, measured.logits)
    write_report(record, evaluation, dataset.test.images, exported)
    return result


def _published(files: Mapping[str, bytes], folder: Path) -> Published | None:
    """The version of a model that consists of just these files; None where there is none."""
    for version in folder.glob("[0-9]*"):
        paths = [path for path in version.rglob("*") if path.is_file()] if version.name.isdecimal() else []
        found = {str(path.relative_to(version)): path for path in paths}
        if found.keys() == files.keys() and all(found[name].read_bytes() == files[name] for name in files):
            return Published(int(version.name), version / file_name(PRECISIONS[0]))
    return None


def _say(fabric: Fabric, text: str) -> None:
    if fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)


def _size(job: Job, subject: Network) -> ImageSize:
    if job.image_size is None:
        return subject.size
    if not subject.any_size:
        raise TrainingError(f"--image-size {job.image_size}: {job.network} takes images of {subject.size} only")
    return ImageSize(job.image_size, job.image_size, subject.size.channels)


def _load(job: Job, size: ImageSize, fabric: Fabric) -> Dataset:
    # One process of each machine after the other: the first may download.
    with fabric.rank_zero_first(local=True):
        dataset = datasets.load(job.data, size, job.data_root, job.seed, strict=job.strict, threads=job.threads)
    for text in dataset.unreadable:
        _say(fabric, f"skipped, unreadable: {text}")
    if job.patience is not None:
        dataset = dataset.with_validation(job.seed)
    parts = {"train": dataset.train, "validation": dataset.validation, "held out": dataset.test}
    counts = {
        name: np.bincount(part.labels, minlength=len(dataset.labels))
        for name, part in parts.items()
        if part is not None
    }
    _say(
        fabric,
        f"{job.network} on {dataset.name}: {len(dataset.labels)} classes, "
        + ", ".join(f"{count.sum()} images {name}" for name, count in counts.items())
        + f", {len(dataset.unreadable)} files skipped",
    )
    order = np.argsort(-counts["train"], kind="stable")
    shown = range(len(order)) if len(order) <= _CLASSES_SHOWN else (order[0], order[-1])
    for index in shown:
        _say(fabric, f"  {dataset.labels[index]}: " + ", ".join(f"{n[index]} {name}" for name, n in counts.items()))
    return dataset


def _run_folder(job: Job) -> RunFolder:
    if job.resume:
        return RunFolder(job.resume)
    record = RunFolder.create(job.runs, job.network, job.data)
    record.write_config(job.config())
    record.write_environment()
    return record


@contextlib.contextmanager
def _logs(job: Job, record: RunFolder, done: int, first: bool) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """What takes each epoch's figures: metrics.jsonl, and TensorBoard's files."""
    if not first:
        yield record.log
        return
    record.forget_after(done)
    if not job.tensorboard:
        yield record.log
        return
    from torch.utils.tensorboard import SummaryWriter  # takes seconds, and is only needed here

    with SummaryWriter(str(record.path / "tensorboard"), purge_step=done + 1) as writer:

        def log(figures: Mapping[str, float]) -> None:
            record.log(figures)
            for name, value in figures.items():
                if name != "epoch":
                    writer.add_scalar(name, value, int(figures["epoch"]))
            writer.flush()

        yield log


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


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _image_input(
    size: ImageSize, images: npt.NDArray[np.uint8], normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> ImageInput:
    """The image with its normalisation: if none is given, mean 0 and deviation 1 over the images, by channel."""
    if normalisation:
        mean, std = normalisation
        return ImageInput(size.height, size.width, size.channels, mean=mean, std=std, in_graph=True)
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
