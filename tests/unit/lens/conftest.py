from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from opened import Builder, Opened


@pytest.fixture
def builder() -> type[Builder]:
    return Builder


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Puts a model into a version's folder, with a manifest.json if there is one, and gives the file's path."""

    def save(model: onnx.ModelProto | bytes, manifest: dict[str, Any] | str | None = None) -> Path:
        folder = tmp_path / "model" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        if manifest is not None:
            text = manifest if isinstance(manifest, str) else json.dumps(manifest)
            (folder / "manifest.json").write_text(text)
        return path

    return save


@pytest.fixture
def serve(save: Callable[..., Path]) -> Callable[..., Opened]:
    """Opens a model as the server does."""

    def serve(model: onnx.ModelProto, manifest: dict[str, Any] | None = None, **options: Any) -> Opened:
        return Opened(save(model, manifest), **options)

    return serve


@pytest.fixture(scope="session")
def open_file() -> type[Opened]:
    return Opened


@pytest.fixture(scope="session")
def export() -> Callable[..., None]:
    """Exports a torch network with either of torch's exporters, with a dynamic batch."""
    import torch

    torch.set_num_threads(1)

    def export(module: Any, example: Any, path: Path, dynamo: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if dynamo:
                dims = ({0: torch.export.Dim("batch")},)
                program = torch.onnx.export(
                    module, (example,), dynamo=True, dynamic_shapes=dims, verbose=False, external_data=False
                )
                program.save(path)
            else:
                axes = {"image": {0: "batch"}}
                torch.onnx.export(module, (example,), path, dynamo=False, input_names=["image"], dynamic_axes=axes)

    return export
