"""The command line's grammar."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from convlens._channel import DEFAULT_TIMEOUT
from convlens._lens_requests import METHODS
from convlens.cli import _bench, _commands, _lens

_SERVER = "CONVLENS_SERVER"


def parser(version: str) -> argparse.ArgumentParser:
    """The parser; what it parses has a `run`, to be called with it."""
    top = argparse.ArgumentParser(
        prog="convlens",
        description="Classifies images with convolutional networks, and shows what they compute inside.",
        epilog="convlens COMMAND --help tells more.",
    )
    top.add_argument("--version", action="version", version=f"convlens {version}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asks = [asking()]
    chooses = [*asks, _choosing()]

    command = commands.add_parser("classify", parents=chooses, help="classify images")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a JPEG, PNG or WebP file")
    command.add_argument("--top-k", type=_positive, metavar="K", help="predictions an image (default: 5)")
    command.set_defaults(run=_commands.classify)

    command = commands.add_parser("maps", parents=chooses, help="write the feature maps of layers")
    command.add_argument("image", metavar="IMAGE", help="a JPEG, PNG or WebP file")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--layers", type=_list, default=[], metavar="A,B", help="names of layers")
    which.add_argument("--kinds", type=_list, default=[], metavar="A,B", help="kinds of layers (default: conv)")
    which.add_argument("--all", action="store_true", help="every layer")
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--output", type=Path, default=Path("maps"), metavar="DIR",
        help="write a PNG file a layer there: a tile a channel, each by its own range (default: maps)",
    )  # fmt: skip
    where.add_argument("--npz", type=Path, metavar="FILE", help="write one NumPy archive instead: float32, exact")
    command.set_defaults(run=_commands.maps)

    command = commands.add_parser("explain", parents=chooses, help="show the arithmetic that makes a unit's value")
    command.add_argument("image", metavar="IMAGE", help="a JPEG, PNG or WebP file")
    command.add_argument("--layer", required=True, help="the layer's name")
    command.add_argument("--channel", type=_natural, default=0, metavar="C", help="channel, or unit (default: 0)")
    command.add_argument("--row", type=_natural, default=0, metavar="Y", help="of the feature map (default: 0)")
    command.add_argument("--column", type=_natural, default=0, metavar="X", help="of the feature map (default: 0)")
    command.add_argument("--output", type=Path, metavar="FILE", help="draw it as a PNG file too (needs convlens[plot])")
    command.add_argument("--npz", type=Path, metavar="FILE", help="write every number to a NumPy archive too")
    command.set_defaults(run=_lens.explain)

    command = commands.add_parser("attribute", parents=chooses, help="show where in an image the answer comes from")
    command.add_argument("image", metavar="IMAGE", help="a JPEG, PNG or WebP file")
    command.add_argument("--method", choices=METHODS, default=METHODS[0], help=f"(default: {METHODS[0]})")
    command.add_argument("--class", type=_natural, dest="class_index", metavar="N", help="index (default: the best)")
    command.add_argument("--layer", default="", help="whose maps are used (default: behind the last convolution)")
    command.add_argument("--window", type=_positive, metavar="N", help="side of occlusion's square, pixels")
    command.add_argument("--stride", type=_positive, metavar="N", help="pixels between its squares")
    _add_files(command, "attribution.png", "the image with the map laid over it", "the map, float32, and the overlay")
    command.set_defaults(run=_lens.attribute)

    command = commands.add_parser("kernels", parents=chooses, help="write the weights of a layer")
    command.add_argument("layer", metavar="LAYER")
    command.add_argument("--channels", type=_numbers, default=[], metavar="A,B", help="output channels (default: all)")
    _add_files(command, "kernels.png", "a row an output channel", "weights and biases")
    command.set_defaults(run=_lens.kernels)

    command = commands.add_parser("compare", parents=chooses, help="compare two images, or two models, layer by layer")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="two; any number with another model or version")
    command.add_argument("--other-model", metavar="MODEL", help="compare with this one, for the same images")
    command.add_argument("--other-version", type=_positive, metavar="N", help="compare with this version")
    command.add_argument("--layers", type=_list, default=[], metavar="A,B", help="names (default: all that both have)")
    command.set_defaults(run=_lens.compare)

    command = commands.add_parser(
        "maximizing", parents=chooses, help="list the images of a dataset that activate channels most"
    )
    command.add_argument("layer", metavar="LAYER")
    command.add_argument("--channels", type=_numbers, default=[], metavar="A,B", help="(default: all)")
    command.add_argument(
        "--dataset", default="", metavar="NAME", help="the server's (default: its only one, else samples)"
    )
    command.add_argument("--count", type=_positive, metavar="N", help="images a channel (default: 9)")
    command.set_defaults(run=_lens.maximizing)

    command = commands.add_parser("samples", parents=chooses, help="write the images that stand beside a model")
    command.add_argument(
        "--output", type=Path, default=Path("samples"), metavar="DIR", help="folder for them (default: samples)"
    )
    command.set_defaults(run=_lens.samples)

    command = commands.add_parser("models", parents=asks, help="list the server's models")
    command.set_defaults(run=_commands.models)

    command = commands.add_parser("layers", parents=asks, help="list the layers of a model")
    command.add_argument("model", metavar="MODEL")
    _add_version(command)
    command.set_defaults(run=_commands.layers)

    command = commands.add_parser(
        "graph", parents=asks, help="show how a model's layers are connected, and what each saves"
    )
    command.add_argument("model", metavar="MODEL")
    _add_version(command)
    command.set_defaults(run=_lens.graph)

    command = commands.add_parser("bench", parents=chooses, help="measure a running server")
    command.add_argument("--concurrency", type=_positive, default=8, metavar="N", help="callers (default: 8)")
    command.add_argument("--images", type=_positive, default=1, metavar="N", help="images a request (default: 1)")
    until = command.add_mutually_exclusive_group()
    until.add_argument("--requests", type=_positive, metavar="N", help="stop after so many")
    until.add_argument("--seconds", type=_seconds, default=10.0, metavar="S", help="stop after (default: 10)")
    command.set_defaults(run=_bench.bench)

    # Only for the list of commands: main has passed these on before.
    commands.add_parser("serve", add_help=False, help="start a server (needs convlens[server])")
    commands.add_parser("train", add_help=False, help="train a network (needs convlens[server,training])")
    commands.add_parser("runs", add_help=False, help="list and compare trainings (needs convlens[training])")
    commands.add_parser("evaluate", add_help=False, help="evaluate a model on labelled data (needs convlens[training])")
    return top


def asking() -> argparse.ArgumentParser:
    """The options of every command that asks a server, to be taken over by `parents`."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--server", default=os.environ.get(_SERVER) or "localhost:8001", metavar="HOST:PORT",
        help=f"the server's gRPC address (default: ${_SERVER}, or localhost:8001)",
    )  # fmt: skip
    options.add_argument(
        "--timeout", type=_seconds, default=DEFAULT_TIMEOUT, metavar="S",
        help=f"seconds to wait for an answer (default: {DEFAULT_TIMEOUT:g})",
    )  # fmt: skip
    options.add_argument("--tls", action="store_true", help="secure the connection, trusting public authorities")
    options.add_argument("--ca", metavar="FILE", help="secure it, trusting the authorities in this PEM file")
    options.add_argument("--certificate", metavar="FILE", help="one's own certificate, a PEM file; needs --key")
    options.add_argument("--key", metavar="FILE", help="its private key, a PEM file")
    options.add_argument("--json", action="store_true", help="print JSON")
    return options


def _choosing() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--model", default="", help="the model's name (may be left out where the server has only one)")
    _add_version(options)
    return options


def _add_version(options: argparse.ArgumentParser) -> None:
    options.add_argument("--version", type=_positive, default=0, metavar="N", help="its version (default: the highest)")


def _add_files(command: argparse.ArgumentParser, name: str, picture: str, arrays: str) -> None:
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--output", type=Path, default=Path(name), metavar="FILE", help=f"PNG file: {picture} (default: {name})"
    )
    where.add_argument("--npz", type=Path, metavar="FILE", help=f"write a NumPy archive instead: {arrays}")


def _list(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [_natural(number) for number in _list(text)]


def _natural(text: str) -> int:
    return _at_least(0, text)


def _positive(text: str) -> int:
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is {'negative' if least == 0 else 'not positive'}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value
