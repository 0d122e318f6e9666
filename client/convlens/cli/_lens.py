"""The commands that look into a network, beyond its feature maps."""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from convlens._errors import Error
from convlens._explanation import Explanation, Patch
from convlens.cli import _files, _show
from convlens.cli._commands import connect

_ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


def explain(options: argparse.Namespace) -> int:
    """Prints a unit's arithmetic, and writes it to files."""
    with connect(options) as client:
        unit = client.explain(
            options.image, options.layer, options.channel, options.row, options.column, options.model, options.version
        )
    if options.output:
        try:
            unit.plot().savefig(options.output, format="png")
        except ModuleNotFoundError as error:
            print(f"convlens: {error}", file=sys.stderr)
            return 1
    if options.npz:
        _files.archive(options.npz, _arrays(unit))
    if options.json:
        fields = {name: getattr(unit, name) for name in ("layer", "channel", "row", "column", "kind")}
        _show.as_json({
            **fields, "result": unit.result, "activation": unit.activation, "arithmetic": str(unit.arithmetic),
            "receptive_field": dataclasses.asdict(unit.receptive_field), "model": unit.model, "version": unit.version,
        })  # fmt: skip
        return 0
    field = unit.receptive_field
    # With a true minus, as the arithmetic has it.
    activation = f"{unit.activation:.7g}".replace("-", "−")
    print(unit)
    print(
        f"\n{unit.kind}; the network computes {activation}; the unit sees {field.height} × {field.width} pixels of "
        f"the image, from row {field.top} and column {field.left}"
    )
    return 0


def attribute(options: argparse.Namespace) -> int:
    """Writes where in an image the answer comes from."""
    with connect(options) as client:
        found = client.attribute(
            options.image,
            options.model,
            options.version,
            options.method,
            options.class_index,
            options.layer,
            options.window,
            options.stride,
            overlay=True,
        )
    assert found.overlay is not None
    if options.npz:
        _files.archive(options.npz, [("map", found.map), ("overlay", found.overlay)])
    else:
        # Here, because it imports Pillow.
        from convlens import _pictures

        _pictures.enlarged(found.overlay).save(options.output, "PNG")
    row, column = (int(each) for each in np.unravel_index(found.map.argmax(), found.map.shape))
    result = {
        "file": str(options.npz or options.output), "method": found.method, "layer": found.layer,
        **dataclasses.asdict(found.prediction), "images": found.images, "minimum": float(found.map.min()),
        "maximum": float(found.map.max()), "row": row, "column": column,
    }  # fmt: skip
    if options.json:
        _show.as_json(result)
        return 0
    of = f" of {found.layer}" if found.layer else ""
    print(
        f"{found.prediction.label} ({found.prediction.score:.2%}) by {found.method}{of}: most at row {row}, column "
        f"{column} ({found.map.max():.4g}); {found.images} images computed\n{result['file']}"
    )
    return 0


def graph(options: argparse.Namespace) -> int:
    """Lists the layers of a network within its blocks, and what each saves against a fully connected one."""
    with connect(options) as client:
        network = client.graph(options.model, options.version)
    if options.json:
        _show.as_json(dataclasses.asdict(network))
        return 0
    inputs: dict[str, list[str]] = {}
    for source, target in network.edges:
        inputs.setdefault(target, []).append(source)
    rows: list[list[object]] = []
    for node in network.layers:
        name = node.layer.name
        around = [block for block in network.blocks if name in block.layers]
        for depth, block in enumerate(around):
            if block.layers[0] == name:
                rows.append([f"{'  ' * depth}{block.name}", f"{len(block.layers)} layers", *[None] * 5])
        rows.append([
            f"{'  ' * len(around)}{name}", node.layer.kind, _show.size(node.layer.shape), f"{node.connections:,}",
            f"{node.dense_connections:,}", _times(node.dense_connections, node.connections),
            ", ".join(inputs.get(name, [])),
        ])  # fmt: skip
    right = {"OUTPUT", "CONNECTIONS", "IF FULLY CONNECTED", "SAVES"}
    _show.table(["LAYER", "KIND", "OUTPUT", "CONNECTIONS", "IF FULLY CONNECTED", "SAVES", "INPUTS"], rows, right)
    connections = sum(node.connections for node in network.layers)
    dense = sum(node.dense_connections for node in network.layers)
    print(
        f"\n{network.model} {network.version}: {len(network.layers)} layers with {connections:,} connections between "
        f"units; fully connected ones would have {dense:,}"
    )
    return 0


def _times(dense: int, connections: int) -> str | None:
    if not connections:
        return None
    times = dense / connections
    return f"{times:,.0f}×" if times >= 9.95 or times == 1 else f"{times:.1f}×"


def kernels(options: argparse.Namespace) -> int:
    """Writes the weights of a layer."""
    with connect(options) as client:
        layer = client.kernels(options.layer, options.model, options.version, options.channels)
    if options.npz:
        arrays = [("weights", layer.weights)] + ([] if layer.bias is None else [("bias", layer.bias)])
        _files.archive(options.npz, arrays)
    else:
        from convlens import _pictures

        _pictures.kernels(layer.weights).save(options.output, "PNG")
    low, high = float(layer.weights.min()), float(layer.weights.max())
    if options.json:
        _show.as_json({
            "file": str(options.npz or options.output), "layer": layer.layer, "kind": layer.kind,
            "shape": layer.weights.shape, "groups": layer.groups, "minimum": low, "maximum": high,
            "bias": None if layer.bias is None else layer.bias.tolist(),
        })  # fmt: skip
        return 0
    _show.table(
        ["LAYER", "KIND", "WEIGHTS", "MIN", "MAX", "BIASES", "FILE"],
        [[layer.layer, layer.kind, _show.size(layer.weights.shape), f"{low:.4g}", f"{high:.4g}",
          0 if layer.bias is None else len(layer.bias), options.npz or options.output]],
        right={"WEIGHTS", "MIN", "MAX", "BIASES"},
    )  # fmt: skip
    return 0


def compare(options: argparse.Namespace) -> int:
    """Compares two images, or two models or versions for any number of images."""
    images, others = options.images, None
    if options.other_model is None and options.other_version is None:
        if len(images) != 2:
            print("convlens: compare takes two images, or --other-model or --other-version", file=sys.stderr)
            return 2
        images, others = images[:1], images[1:]
    with connect(options) as client:
        layers = client.compare(
            images, others, options.model, options.version, options.other_model, options.other_version, options.layers
        )
    if options.json:
        _show.as_json([
            {"layer": layer.layer, "kind": layer.kind, "cosine": layer.cosine.tolist(),
             "relative_difference": layer.relative_difference.tolist(), "cka": layer.cka}
            for layer in layers
        ])  # fmt: skip
        return 0
    mean = "MEAN " if len(images) > 1 else ""
    header = ["LAYER", "KIND", f"{mean}COSINE", f"{mean}RELATIVE DIFFERENCE"]
    rows = [
        [layer.layer, layer.kind, f"{layer.cosine.mean():.4f}", f"{layer.relative_difference.mean():.4f}"]
        for layer in layers
    ]
    # Of one image there is none.
    if any(layer.cka is not None for layer in layers):
        header.append("CKA")
        for row, layer in zip(rows, layers, strict=True):
            row.append("" if layer.cka is None else f"{layer.cka:.4f}")
    _show.table(header, rows, right=set(header[2:]))
    if others is None and not options.layers:
        print("\nThese are the layers that both sides have by name and shape.")
    return 0


def maximizing(options: argparse.Namespace) -> int:
    """Lists the images of a dataset that activate channels most."""
    with connect(options) as client:
        found = client.maximizing(
            options.layer,
            options.model,
            options.version,
            options.channels,
            options.dataset,
            options.count,
            progress=_progress if sys.stderr.isatty() else None,
        )
    if options.json:
        _show.as_json([
            {"channel": each.channel, "dataset": each.dataset,
             "images": [{key: value for key, value in dataclasses.asdict(image).items() if key != "image"}
                        for image in each.images]}
            for each in found
        ])  # fmt: skip
        return 0
    _show.table(
        ["CHANNEL", "ACTIVATION", "ROW", "COLUMN", "FILE"],
        [
            [each.channel if rank == 0 else None, f"{image.activation:.4g}", image.row, image.column, image.file]
            for each in found
            for rank, image in enumerate(each.images)
        ],
        right={"CHANNEL", "ACTIVATION", "ROW", "COLUMN"},
    )
    return 0


def samples(options: argparse.Namespace) -> int:
    """Writes the images that stand beside a model."""
    import PIL.Image

    with connect(options) as client:
        found = client.samples(options.model, options.version)
    if not found:
        raise Error("the model has no samples: images come from the folder samples/ beside its model.onnx")
    options.output.mkdir(parents=True, exist_ok=True)
    files = []
    for number, sample in enumerate(found):
        with PIL.Image.open(io.BytesIO(sample.file)) as image:
            ending = _ENDINGS.get(image.format or "", "")
        files.append(options.output / (_files.safe(sample.name, str(number)) + ending))
        files[-1].write_bytes(sample.file)
    if options.json:
        _show.as_json([{"name": each.name, "file": str(file)} for each, file in zip(found, files, strict=True)])
    else:
        for file in files:
            print(file)
    return 0


def _progress(done: int, total: int) -> None:
    print(f"\r{done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _arrays(unit: Explanation) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every number of an explanation, by name; what takes several values has them in one array."""
    yield "result", np.asarray(unit.result)
    yield "activation", np.asarray(unit.activation, np.float32)
    for each in dataclasses.fields(unit.arithmetic):
        value = getattr(unit.arithmetic, each.name)
        if isinstance(value, Patch):
            yield "values", value.values
        elif each.name == "patches":
            yield "values", np.stack([patch.values for patch in value])
        elif isinstance(value, Mapping):
            for name, number in value.items():
                yield name, np.asarray(number)
        elif value is not None and not isinstance(value, str):
            yield each.name, np.asarray(value)
