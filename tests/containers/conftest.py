from __future__ import annotations

from collections.abc import Iterator

import pytest

from containers.system import ROOT, SERVER, Expected, System, docker


@pytest.fixture(scope="session")
def image() -> str:
    """The server's image."""
    System("convlens-test").compose("build", "server", timeout=600)
    return SERVER


@pytest.fixture(scope="session")
def built() -> Iterator[System]:
    """The system, as `docker compose up --wait` makes it of a clone."""
    system = System("convlens-test")
    system.down()
    try:
        system.up("--build")
        yield system
    finally:
        system.down()


@pytest.fixture
def system(built: System) -> Iterator[System]:
    """The system; what a failed test leaves in its logs is shown."""
    yield built
    for line in docker("logs", "--tail", "20", built.container("envoy")).splitlines():
        print("envoy:", line)


@pytest.fixture(scope="session")
def expected() -> Expected:
    path = ROOT / "models" / "lecture_cnn" / "1" / "model.onnx"
    return Expected({1: path.read_bytes()})
