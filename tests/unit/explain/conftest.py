from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convlens.v1 import convlens_pb2 as pb
from convlens_server.explain import explain_unit
from explaining import check
from opened import Builder, Opened


class Explained:
    """A network whose units are explained for one image."""

    def __init__(self, opened: Opened, image: np.ndarray) -> None:
        self.opened = opened
        self.catalogue = opened.catalogue
        self._image = image
        layers = [*([self.catalogue.image] if self.catalogue.image else []), *self.catalogue.layers]
        arrays = opened.lens.maps(image, layers)
        self.maps = {layer.name: values[0] for layer, values in zip(layers, arrays, strict=True)}

    def explain(self, layer: str, channel: int = 0, row: int = 0, column: int = 0) -> pb.ExplainUnitResponse:
        """The explanation of a unit, unchecked."""
        aside: Any = SimpleNamespace(decoded=lambda images, model: self._image)
        model: Any = SimpleNamespace(lens=self.opened.lens, catalogue=self.catalogue, name="m", version=1)
        unit = pb.Unit(layer=layer, channel=channel, row=row, column=column)
        [response] = explain_unit(aside, model, pb.ExplainUnitRequest(unit=unit), None)  # type: ignore[arg-type]
        return response

    def checked(self, layer: str, channel: int = 0, row: int = 0, column: int = 0) -> pb.ExplainUnitResponse:
        """The explanation of a unit, computed again."""
        response = self.explain(layer, channel, row, column)
        check(response, self.maps)
        return response

    def all_units(self, layer: str) -> list[pb.ExplainUnitResponse]:
        """The explanations of all units of a small layer, computed again."""
        shape = self.maps[layer].shape
        shape = (*shape, 1, 1, 1)[:3] if len(shape) <= 3 else (int(np.prod(shape[:-2])), *shape[-2:])
        return [self.checked(layer, *map(int, place)) for place in np.ndindex(*shape)]


@pytest.fixture
def builder() -> type[Builder]:
    return Builder


@pytest.fixture
def explained(tmp_path: Path) -> Callable[..., Explained]:
    """Opens a model as the server does, with an image."""
    count = 0

    def explained(model: Any, image: Any = None) -> Explained:
        nonlocal count
        count += 1
        path = tmp_path / str(count) / "model.onnx"
        path.parent.mkdir()
        path.write_bytes(model.SerializeToString())
        opened = Opened(path)
        pixels = opened.images(1) if image is None else np.asarray(image, np.uint8)[None]
        return Explained(opened, pixels)

    return explained
