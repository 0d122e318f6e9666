"""The command line: `convlens train`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convlens_training.errors import TrainingError
from convlens_training.recipes import NETWORKS

if TYPE_CHECKING:
    from convlens_training.pipeline import Result

# Packages that the pipeline imports, and the extra that brings each.
_NEEDED = {
    "torch": "convlens[training]",
    "torchvision": "convlens[training]",
    "onnx": "convlens[training]",
    "onnxscript": "convlens[training]",
    "tqdm": "convlens[training]",
    "mlxtend": "convlens[training]",
    "onnxruntime": "convlens[server]' (or, for CUDA, 'convlens[server-gpu]",
}


def main(argv: Sequence[str]) -> int:
    """Runs `convlens train` with the arguments after "train".

    Returns:
        The exit status: 0 published, 1 failed (the reason is on standard error), 130 interrupted. In each case but the
        first nothing was published.

    Raises:
        SystemExit: Status 2, the usage is wrong; status 0 for --help.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.data_root is not None and arguments.data != "mnist":
        parser.error(f"argument --data-root: only --data mnist has one, not --data {arguments.data}")
    for package, extra in _NEEDED.items():
        if importlib.util.find_spec(package) is None:
            print(f"convlens train: needs {package}, which is not installed: pip install '{extra}'", file=sys.stderr)
            return 1

    from convlens_training.pipeline import Job, run  # imports torch, which takes seconds and may be missing

    changes = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "learning_rate")}
    recipe = dataclasses.replace(
        NETWORKS[arguments.network].recipe, **{name: value for name, value in changes.items() if value is not None}
    )
    job = Job(
        network=arguments.network,
        recipe=recipe,
        data=arguments.data,
        data_root=arguments.data_root,
        models=arguments.models,
        name=arguments.name or arguments.network,
        seed=arguments.seed,
        threads=arguments.threads,
        device=arguments.device,
    )
    try:
        result = run(job)
    except TrainingError as error:
        print(f"convlens train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("convlens train: interrupted, nothing was published", file=sys.stderr)
        return 130
    print(json.dumps(dataclasses.asdict(result), ensure_ascii=False, indent=1) if arguments.json else _text(result))
    return 0


def _text(result: Result) -> str:
    lines = [
        f"published {result.model} version {result.version}: {result.path}",
        f"accuracy {result.test_accuracy:.2%} on {result.test_images} held-out images; "
        f"{result.parameters:,} parameters, trained for {result.seconds:.0f} s on {result.device}",
    ]
    if result.unreadable:
        lines.append(f"{len(result.unreadable)} unreadable files were skipped")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convlens train",
        description="Trains a network, exports it to ONNX, and publishes it as a model's next version.",
        epilog="Of mnist5k, and of a folder without train/, a fifth of each class is held out, drawn by the seed.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "network", choices=NETWORKS, help="; ".join(f"{n}: {s.description}" for n, s in NETWORKS.items())
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="mnist|mnist5k|FOLDER",
        help="mnist (60,000 digits; downloaded where missing), mnist5k (5,000 of them; no download), or a folder of "
        "images: FOLDER/train/<label>/* with FOLDER/val or FOLDER/test, or FOLDER/<label>/*",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="where MNIST's files are or go, as DIR/MNIST/raw/*.gz; the user's cache if not given",
    )
    parser.add_argument(
        "--models", type=Path, default=Path("models"), metavar="DIR", help="the model repository (%(default)s)"
    )
    parser.add_argument("--name", type=_name, help="the model's name there; the network's if not given")
    parser.add_argument(
        "--epochs", type=_integer(1), metavar="N", help="how often each image is seen; the recipe's if not given"
    )
    parser.add_argument("--batch-size", type=_integer(1), metavar="N", help="images a step; the recipe's if not given")
    parser.add_argument(
        "--learning-rate", type=_learning_rate, metavar="X", help="the highest; the recipe's if not given"
    )
    parser.add_argument(
        "--seed", type=_integer(0, 2**32 - 1), default=0, metavar="N", help="decides everything random (%(default)s)"
    )
    parser.add_argument("--threads", type=_integer(1), default=1, metavar="N", help="of the CPU (%(default)s)")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto, which takes CUDA if there is one, if not given",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
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


def _learning_rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no model name: letters, digits, _ . and -, a letter or digit first, at most 128"
        )
    return text
