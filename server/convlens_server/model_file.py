"""Reads an ONNX file with its external data, and nothing outside the file's own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from convlens_server.errors import ModelError

# A serialised protobuf message must be smaller, and the session takes the model serialised.
_MAX_BYTES = 2**31 - 1


def read_model(path: Path) -> onnx.ModelProto:
    """Reads a model into memory, its external data included.

    External data is looked at before anything is read from it: its location must be a relative path without "..",
    and must lead, symbolic links resolved, to a regular file inside the model's folder.

    Args:
        path: The ONNX file.

    Raises:
        ModelError: The file is missing, not ONNX or damaged, or its external data is missing, too short or elsewhere.
            The text does not name the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}; a version's folder must hold model.onnx") from None
    if not content:
        raise ModelError("the file is empty; export or copy it again")
    try:
        model = onnx.ModelProto.FromString(content)
        if not model.graph.node or not model.opset_import:
            raise DecodeError("no graph with nodes and an operator set in it")
        tensors = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    except DecodeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"not an ONNX model, or a damaged one ({reason}); export or copy it again") from None
    _load_external(path.parent, tensors)
    return model


def _load_external(folder: Path, tensors: list[TensorProto]) -> None:
    files: dict[str, Path] = {}
    total = 0
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _inside(folder, location)
        tensor.raw_data = _read_part(files[location], location, tensor.name, entries)
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("external_data")
        total += len(tensor.raw_data)
        if total > _MAX_BYTES:
            raise ModelError("its external data is over 2 GiB, which a model in memory cannot be; use float16")


def _inside(folder: Path, location: str) -> Path:
    """The file that an external-data location means, if it lies in the model's folder."""
    parts = PurePosixPath(location.replace("\\", "/"))
    cure = "keep external data beside model.onnx and name it by a relative path"
    if not location or parts.is_absolute() or PureWindowsPath(location).drive or ".." in parts.parts:
        raise ModelError(f"external data {location!r} is outside the model's folder; {cure}")
    try:
        folder = folder.resolve(strict=True)
        file = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise ModelError(f"external data {location!r} is missing; put it beside model.onnx") from None
    if not file.is_relative_to(folder):
        raise ModelError(f"external data {location!r} is a link out of the model's folder; {cure}")
    if not file.is_file():
        raise ModelError(f"external data {location!r} is not a regular file; {cure}")
    return file


def _read_part(file: Path, location: str, tensor: str, entries: dict[str, str]) -> bytes:
    try:
        offset = int(entries.get("offset", "0"))
        size = file.stat().st_size
        length = int(entries["length"]) if "length" in entries else size - offset
    except ValueError:
        raise ModelError(f"external data of {tensor!r} has no valid offset and length; export again") from None
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"external data {location!r} has {size} bytes, but {tensor!r} is at {offset} … {offset + length}; "
            "the file is cut off: copy it again"
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initialisers, and those in attributes, inner graphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for candidate in node.attribute:
        if candidate.HasField("t"):
            yield candidate.t
        yield from candidate.tensors
        for sparse in [candidate.sparse_tensor] if candidate.HasField("sparse_tensor") else candidate.sparse_tensors:
            yield from (sparse.values, sparse.indices)
        for inner in [candidate.g] if candidate.HasField("g") else candidate.graphs:
            yield from _graph_tensors(inner)
