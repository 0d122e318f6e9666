from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from convlens_server.device import Device, device_memory, gpu_figures


class NVMLError(Exception):
    pass


@pytest.fixture
def pynvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of two GPUs; the second one does not tell its power limit."""
    module: Any = ModuleType("pynvml")

    def limit(handle: str) -> int:
        raise NVMLError

    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByIndex = lambda index: ("GPU-a", "GPU-b")[index]
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    module.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=len(handle), total=100)
    module.nvmlDeviceGetUUID = lambda handle: handle.encode()
    module.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=40)
    module.nvmlDeviceGetPowerUsage = lambda handle: 70_500
    module.nvmlDeviceGetEnforcedPowerLimit = limit
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module


def test_what_is_told(pynvml: Any) -> None:
    figures = gpu_figures(Device("cuda", 1))

    assert figures is not None
    assert (figures.uuid, figures.utilization, figures.power, figures.power_limit) == ("GPU-b", 0.4, 70.5, None)
    assert device_memory(Device("cuda", 1)) == (5, 100)


@pytest.mark.parametrize(("visible", "index", "uuid"), [("1,0", 0, "GPU-b"), ("GPU-b", 0, "GPU-b"), ("", 0, "GPU-a")])
def test_visible_devices(pynvml: Any, monkeypatch: pytest.MonkeyPatch, visible: str, index: int, uuid: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    figures = gpu_figures(Device("cuda", index))

    assert figures is not None
    assert figures.uuid == uuid


def test_without_a_gpu(pynvml: Any) -> None:
    assert gpu_figures(Device("cpu")) is None
    assert gpu_figures(Device("cuda", 7)) is None
