from __future__ import annotations

from pathlib import Path

import pytest

from repositories import Publisher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def publish(folder: Path) -> Publisher:
    return Publisher(folder)
