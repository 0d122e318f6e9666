"""The command line: `convlens train`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens_training.architectures import NETWORKS
from convlens_training.errors import TrainingError
from convlens_training.publication import check_repository
from convlens_training.recipes import RECIPES, Recipe

if TYPE_CHECKING:
    from convlens_training.jobs import Job, Result

# Packages that the pipeline imports, and the extra that brings each.
_NEEDED = {
    "torch": "convlens[training]",
    "torchvision": "convlens[training]",
    "torchmetrics": "convlens[training]",
    "lightning_fabric": "convlens[training]",
    "matplotlib": "convlens[training]",
    "onnx": "convlens[training]",
    "onnxscript": "convlens[training]",
    "tqdm": "convlens[training]",
    "mlxtend": "convlens[training]",
    "yaml": "convlens[training]",
    "onnxruntime": "convlens[server]' (or, for CUDA, 'convlens[server-gpu]",
}
# Flags that change a recipe.
_CHANGES = ("epochs", "batch_size", "learning_rate")
_MODELS = Path("models")
_SETS = ("mnist", "fashion_mnist", "cifar10", "imagenette", "mnist5k")


def main(argv: Sequence[str]) -> int:
    """Runs `convlens train` with the arguments after "train".

    Returns:
        The exit status: 0 published, 1 failed (the reason is on standard error), 130 interrupted. In each case but the
        first nothing was published.

    Raises:
        SystemExit: Status 2, the usage is wrong; status 0 for --help.
    """
    parser = _parser()
    # Flags that were not given have no attribute, and Job's defaults hold.
    given = vars(parser.parse_args(argv))
    as_json = given.pop("json", False)
    resume = given.pop("resume", None)
    if resume is None:
        if missing := [name for name in ("network", "--data") if name.strip("-") not in given]:
            parser.error(f"the following arguments are required: {', '.join(missing)} (or --resume)")
        if "data_root" in given and given["data"] not in _SETS[:-1]:
            parser.error(
                f"argument --data-root: only --data {', '.join(_SETS[:-1])} have one, not --data {given['data']}"
            )
    for package, extra in _NEEDED.items():
        if importlib.util.find_spec(package) is None:
            print(f"convlens train: needs {package}, which is not installed: pip install '{extra}'", file=sys.stderr)
            return 1

    # Of several processes only the first speaks for all; what goes wrong in another says so.
    who = "" if (rank := _rank()) == 0 else f"process {rank}: "
    try:
        if resume is None:
            # Once more than the pipeline does, and before what takes seconds.
            check_repository(given.get("models", _MODELS), given.get("name", _name_of(given["network"])))
        from convlens_training import jobs, pipeline  # import torch, which takes seconds and may be missing

        result = pipeline.run(_job(given) if resume is None else jobs.resumed(resume, given))
    except TrainingError as error:
        print(f"convlens train: {who}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"convlens train: {who}interrupted, nothing was published", file=sys.stderr)
        return 130
    if result is not None:
        print(json.dumps(dataclasses.asdict(result), ensure_ascii=False, indent=1) if as_json else _text(result))
    return 0


def _job(given: dict[str, Any]) -> Job:
    from convlens_training.architectures import find
    from convlens_training.jobs import Job

    subject = find(given["network"])
    usual = subject.tuned if subject.tuned and "weights" in given else subject.recipe
    recipe: Recipe = RECIPES[given.pop("recipe", usual)]
    changes = {name: given.pop(name) for name in _CHANGES if name in given}
    given.setdefault("data_root", None)
    given.setdefault("models", _MODELS)
    given.setdefault("name", _name_of(given["network"]))
    return Job(recipe=dataclasses.replace(recipe, **changes), **given)


def _name_of(network: str) -> str:
    """What a model is called that is given no name."""
    return network.rpartition(":")[2]


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def _text(result: Result) -> str:
    lines = [
        f"published {result.model} version {result.version}: {result.path}",
        f"accuracy {result.test_accuracy:.2%} on {result.test_images} held-out images; "
        f"{result.parameters:,} parameters, trained for {result.seconds:.0f} s on {result.device}",
    ]
    for variant in result.variants:
        published = "published too" if variant["published"] else "not published"
        lines.append(f"{variant['precision']} {published}: {variant['reason']}")
    lines.append(f"run {result.run}")
    if result.unreadable:
        lines.append(f"{len(result.unreadable)} unreadable files were skipped")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convlens train",
        description="Trains a network, exports it to ONNX, and publishes it as a model's next version.",
        epilog="Of mnist5k, and of a folder without val/ and test/, a fifth of each class is held out, drawn by the "
        "seed.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    about = "; ".join(f"{name}: {network.description}" for name, network in NETWORKS.items())
    parser.add_argument(
        "network",
        nargs="?",
        help=f"{about}; or any classification network of torchvision, e.g. resnet18",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar=f"{'|'.join(_SETS)}|FOLDER",
        help="mnist, fashion_mnist, cifar10, imagenette (downloaded where missing), mnist5k (5,000 digits; no "
        "download), or a folder of images: FOLDER/train/<label>/* with FOLDER/val, FOLDER/test or both, or "
        "FOLDER/<label>/*",
    )
    data.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where the files of a named set are or go; else the user's cache"
    )
    data.add_argument(
        "--image-size",
        type=_integer(1),
        metavar="N",
        help="height and width of images; else what the network usually takes",
    )
    data.add_argument("--strict", action="store_true", help="refuse files that are no images, instead of skipping them")
    how = parser.add_argument_group("training")
    how.add_argument("--recipe", choices=RECIPES, help="how it is trained; the network's own if not given")
    how.add_argument("--epochs", type=_integer(1), metavar="N", help="how often each image is seen; else the recipe's")
    how.add_argument("--batch-size", type=_integer(1), metavar="N", help="images a step; the recipe's if not given")
    how.add_argument("--learning-rate", type=_positive, metavar="X", help="the highest; the recipe's if not given")
    how.add_argument(
        "--patience",
        type=_integer(1),
        metavar="N",
        help="stop after N epochs without a better one on the validation part: val/ where there is test/ too, else a "
        "tenth of the training images",
    )
    how.add_argument("--weights", type=Path, metavar="FILE", help="begin with these weights, but for the head")
    how.add_argument("--seed", type=_integer(0, 2**32 - 1), metavar="N", help="decides everything random (0)")
    where = parser.add_argument_group("where it computes")
    where.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), help="auto, which is CUDA if there is one, if not given"
    )
    where.add_argument(
        "--devices", type=_integer(1), metavar="N", help="processes on each machine, one for each GPU (1)"
    )
    where.add_argument("--nodes", type=_integer(1), metavar="N", help="machines (1)")
    where.add_argument("--threads", type=_integer(1), metavar="N", help="of the CPU, for each process (1)")
    where.add_argument(
        "--mixed-precision",
        choices=("auto", "on", "off"),
        help="train partly in 16 bits; auto is off on the CPU (auto)",
    )
    results = parser.add_argument_group("results")
    results.add_argument("--models", type=Path, metavar="DIR", help="the model repository (models)")
    results.add_argument("--name", type=_name, help="the model's name there; the network's if not given")
    results.add_argument(
        "--max-drop",
        type=_not_negative,
        metavar="POINTS",
        help="points of per cent of accuracy that an int8 or float16 variant may lose to be published (0.2)",
    )
    results.add_argument("--runs", type=Path, metavar="DIR", help="where the run's folder goes (runs)")
    results.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with an interrupted run, from its folder; needs nothing else"
    )
    results.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too, in the run's folder")
    results.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    allowed = f"a whole number, at least {least}" if most is None else f"a whole number, {least} … {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return parse


def _positive(text: str) -> float:
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _not_negative(text: str) -> float:
    if not 0 <= (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, at least 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no model name: letters, digits, _ . and -, a letter or digit first, at most 128"
        )
    return text
