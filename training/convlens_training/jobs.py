"""What a training is asked to do, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from convlens_training.errors import TrainingError
from convlens_training.recipes import Augmentation, Recipe
from convlens_training.runs import RunFolder

# What a resumed run may be told anew: where it computes, not what.
_MOVABLE = ("device", "devices", "nodes", "threads", "tensorboard")


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, on what, and where to.

    Attributes:
        network: As `architectures.find` takes it.
        recipe: How.
        data: The name of a data set, or a folder of images.
        data_root: Where a named set's files are; None is the user's cache.
        models: The model repository.
        name: The model's name in it.
        seed: Decides everything that is random, 0 … 2³² − 1.
        threads: Of the CPU, of each process, ≥ 1.
        device: "auto", "cpu" or "cuda".
        devices: Processes on each machine, ≥ 1.
        nodes: Machines, ≥ 1.
        mixed_precision: "auto", "on" or "off".
        patience: Epochs without a better one after which it stops; None goes on.
        weights: A file of weights to begin with; None for fresh ones.
        image_size: Height and width of the images; None for the network's.
        strict: Refuse unreadable files.
        max_drop: Points of per cent of accuracy that a variant of the export may lose.
        tensorboard: Log for TensorBoard too.
        runs: The folder of run folders.
        resume: The folder of a run to go on with; None begins one.
    """

    network: str
    recipe: Recipe
    data: str
    data_root: Path | None
    models: Path
    name: str
    seed: int = 0
    threads: int = 1
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    mixed_precision: str = "auto"
    patience: int | None = None
    weights: Path | None = None
    image_size: int | None = None
    strict: bool = False
    max_drop: float = 0.2
    tensorboard: bool = False
    runs: Path = Path("runs")
    resume: Path | None = None

    def config(self) -> dict[str, Any]:
        """For a run's config.yaml."""
        config = asdict(self)
        del config["runs"], config["resume"]
        return config


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job; accuracies are fractions, measured on the export.

    Attributes:
        model: Its name.
        version: Published as.
        path: Of the float32 file.
        run: The run's folder.
        labels: By class index.
        parameters: Trained values.
        training_images: How many it was trained on.
        validation_images: How many the best epoch was chosen on.
        test_images: How many were held out.
        epoch: Whose weights these are.
        test_accuracy: On the held-out images.
        max_logit_difference: Largest difference between the export's logits and torch's.
        label_agreement: Fraction of held-out images with the same class first as torch has.
        variants: Of each precision that was tried: precision, published, reason, accuracy and more.
        timings: Images a second on the CPU by precision, for each batch and number of threads that was tried.
        device: Where it was trained.
        seconds: This part of the training took.
        unreadable: Files that were skipped, each with the reason.
    """

    model: str
    version: int
    path: str
    run: str
    labels: tuple[str, ...]
    parameters: int
    training_images: int
    validation_images: int
    test_images: int
    epoch: int
    test_accuracy: float
    max_logit_difference: float
    label_agreement: float
    variants: tuple[Mapping[str, Any], ...]
    timings: tuple[Mapping[str, Any], ...]
    device: str
    seconds: float
    unreadable: tuple[str, ...]


def resumed(folder: Path, given: Mapping[str, Any]) -> Job:
    """The job of a run that was interrupted.

    Args:
        folder: Of the run.
        given: What was asked for beside, by Job's names, those of Recipe included. It must be what the run was
            asked for, but for where it computes.

    Raises:
        TrainingError: The folder is no run's, the run is finished, or it was asked for something else.
    """
    run = RunFolder(folder)
    config = run.config()
    if run.result() is not None:
        raise TrainingError(f"--resume {folder}: the run is finished; leave --resume out to begin a new one")
    try:
        recipe = dict(config.pop("recipe"))
        augmentation = dict(recipe.pop("augmentation"))
        augmentation["scale"] = tuple(augmentation["scale"])
        config["recipe"] = Recipe(**recipe, augmentation=Augmentation(**augmentation))
        for name in ("data_root", "models", "weights"):
            config[name] = None if config[name] is None else Path(config[name])
        job = Job(**config, runs=folder.parent, resume=folder)
    except (LookupError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{folder / 'config.yaml'} is damaged or of another release ({error}): begin anew without --resume"
        ) from None
    known = {field.name: getattr(job, field.name) for field in fields(Job)}
    known |= {field.name: getattr(job.recipe, field.name) for field in fields(Recipe) if field.name not in known}
    known["recipe"] = job.recipe.name
    for name, value in given.items():
        if name not in _MOVABLE and value != known[name]:
            raise TrainingError(
                f"--resume {folder}: that run has {name.replace('_', ' ')} {known[name]}, not {value}: leave it out, "
                "or begin anew without --resume"
            )
    return replace(job, **{name: value for name, value in given.items() if name in _MOVABLE})
