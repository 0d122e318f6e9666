from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from support import Process

# The same examples at every run, and none that fails because the machine is busy.
settings.register_profile("convlens", derandomize=True, deadline=None)
settings.load_profile("convlens")


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts servers as processes; what is left of them at the end is killed."""
    started: list[Process] = []

    def start(models: Path, *flags: str, **options: Any) -> Process:
        started.append(Process(models, *flags, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()
