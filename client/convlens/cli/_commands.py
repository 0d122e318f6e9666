"""The commands that ask a server once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convlens._channel import TLS
from convlens._client import Client
from convlens._errors import Error
from convlens._types import FeatureMap, Layer
from convlens.cli import _files, _show


def classify(options: argparse.Namespace) -> int:
    """Images that fail do not hinder the others; they are told on stderr, and make the status 1."""
    with connect(options) as client:
        outcomes = list(client.stream(options.images, options.model, options.version, options.top_k))
    results = list(zip(options.images, outcomes, strict=True))
    done = [(image, outcome.classification) for image, outcome in results if outcome.error is None]
    failed = [(image, outcome.error) for image, outcome in results if outcome.error is not None]
    if options.json:
        _show.as_json([
            {"image": image, "error": _error(outcome.error)} if outcome.error
            else {"image": image, **_plain(asdict(outcome.classification))}
            for image, outcome in results
        ])  # fmt: skip
    elif done:
        _show.table(
            ["IMAGE", "SCORE", "LABEL"],
            [
                [image if rank == 0 else None, f"{prediction.score:.2%}", prediction.label]
                for image, result in done
                for rank, prediction in enumerate(result.predictions)
            ],
            right={"SCORE"},
        )
    for image, error in failed:
        text = str(error)
        print(f"convlens: {text if image in text else f'{image}: {text}'}", file=sys.stderr)
    return 1 if failed else 0


def maps(options: argparse.Namespace) -> int:
    """Writes feature maps to files."""
    kinds = options.kinds or ([] if options.layers or options.all else ["conv"])
    with connect(options) as client:
        layers = client.maps(
            options.image,
            options.model,
            options.version,
            options.layers,
            kinds,
            options.all,
            # A PNG file has 256 steps a channel too.
            dtype="float32" if options.npz else "uint8",
        )
    files = _write_archive(layers, options.npz) if options.npz else _write_grids(layers, options.output)
    if options.json:
        _show.as_json([
            {"file": str(file), "layer": layer.layer, "kind": layer.kind, "shape": layer.activation.shape,
             "minimum": float(layer.activation.min()), "maximum": float(layer.activation.max())}
            for file, layer in zip(files, layers, strict=True)
        ])  # fmt: skip
    else:
        _show.table(
            ["LAYER", "KIND", "SHAPE", "MIN", "MAX", "FILE"],
            [
                [
                    layer.layer,
                    layer.kind,
                    _show.size(layer.activation.shape),
                    f"{layer.activation.min():.4g}",
                    f"{layer.activation.max():.4g}",
                    file,
                ]
                for file, layer in zip(files, layers, strict=True)
            ],
            right={"SHAPE", "MIN", "MAX"},
        )
    return 0


def models(options: argparse.Namespace) -> int:
    """Lists models."""
    with connect(options) as client:
        versions = client.models()
    if options.json:
        _show.as_json([asdict(version) for version in versions])
        return 0
    _show.table(
        ["MODEL", "VERSION", "STATE", "INPUT", "CLASSES", "PARAMETERS"],
        [
            [version.model, version.version, "default" if version.is_default else "ready",
             _show.size((version.height, version.width, version.channels)), version.classes, f"{version.parameters:,}"]
            if version.ready
            else [version.model, version.version or None, version.state, None, None, None]
            for version in versions
        ],
        right={"VERSION", "INPUT", "CLASSES", "PARAMETERS"},
    )  # fmt: skip
    for version in versions:
        if version.error:
            name = f"{version.model} {version.version}" if version.version else version.model
            print(f"\n{name} {'is not up to date' if version.ready else version.state}: {version.error}")
    return 0


def layers(options: argparse.Namespace) -> int:
    """Lists the layers of a model."""
    with connect(options) as client:
        model = client.model(options.model, options.version)
    if options.json:
        _show.as_json([asdict(layer) for layer in model.layers])
        return 0
    _show.table(
        ["LAYER", "KIND", "OUTPUT", "WINDOW", "RECEPTIVE FIELD", "PARAMETERS", "MACS", "INPUTS"],
        [
            [layer.name, layer.kind, _show.size(layer.shape), _window(layer), _show.size(layer.receptive_field),
             f"{layer.parameters:,}", f"{layer.multiply_accumulates:,}", ", ".join(layer.inputs)]
            for layer in model.layers
        ],
        right={"OUTPUT", "RECEPTIVE FIELD", "PARAMETERS", "MACS"},
    )  # fmt: skip
    print(
        f"\n{model.model} {model.version}: {model.parameters:,} parameters, {model.multiply_accumulates:,} "
        f"multiply-accumulates an image, on {model.device}"
    )
    return 0


def connect(options: argparse.Namespace) -> Client:
    """A client of the server that the options name."""
    secure = options.tls or options.ca or options.certificate or options.key
    tls = TLS(options.ca, options.certificate, options.key) if secure else False
    return Client(options.server, timeout=options.timeout, tls=tls)


def _plain(classification: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in classification.items() if key not in ("scores", "logits")}


def _error(error: Error) -> dict[str, Any]:
    return {"message": str(error), "code": error.code.name if error.code else None, "reason": error.reason}


def _window(layer: Layer) -> str:
    if not layer.kernel:
        return ""
    parts = [_show.size(layer.kernel)]
    if any(step != 1 for step in layer.stride):
        parts.append(f"stride {_show.size(layer.stride)}")
    if any(layer.padding):
        parts.append(f"padding {','.join(map(str, layer.padding))}")
    if any(step != 1 for step in layer.dilation):
        parts.append(f"dilation {_show.size(layer.dilation)}")
    if layer.groups > 1:
        parts.append(f"{layer.groups} groups")
    return ", ".join(parts)


def _write_archive(layers: Sequence[FeatureMap], file: Path) -> list[Path]:
    _files.archive(file, ((layer.layer, layer.activation) for layer in layers))
    return [file] * len(layers)


def _write_grids(layers: Sequence[FeatureMap], folder: Path) -> list[Path]:
    # Here, because it imports Pillow.
    from convlens._pictures import grid

    folder.mkdir(parents=True, exist_ok=True)
    # Numbered: their order is that of the computation, and names that differ only in such characters stay apart.
    digits = len(str(len(layers)))
    files = []
    for number, layer in enumerate(layers, 1):
        files.append(folder / f"{number:0{digits}}-{_files.safe(layer.layer, layer.kind)}.png")
        grid(layer.activation).save(files[-1])
    return files
