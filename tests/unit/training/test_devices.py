from __future__ import annotations

import pytest
import torch

from convlens_training import devices
from convlens_training.errors import TrainingError


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("asked", "precision"), [("auto", "32-true"), ("off", "32-true"), ("on", "bf16-mixed")])
def test_on_the_cpu(asked, precision, capsys, caplog):
    fabric = devices.make_fabric("auto", 1, 1, asked)
    fabric.launch()
    assert fabric.device.type == "cpu"
    assert fabric.world_size == 1
    assert fabric.strategy.precision.precision == precision
    assert capsys.readouterr() == ("", "")
    assert caplog.text == ""


def test_several_processes_and_machines():
    fabric = devices.make_fabric("cpu", 3, 2, "auto")
    assert fabric.world_size == 6
    assert type(fabric.strategy).__name__ == "DDPStrategy"
    # Two trainings on one machine would meet at a fixed port.
    ports = {devices.make_fabric("cpu", 2, 1, "auto").strategy.cluster_environment.main_port for _ in range(3)}
    assert len(ports) > 1


def test_torchrun_decides(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    fabric = devices.make_fabric("cpu", 1, 1, "auto")
    assert (fabric.world_size, fabric.global_rank) == (6, 4)


def test_without_a_cuda_device():
    with pytest.raises(TrainingError, match="--device cuda: torch finds no CUDA device; install a driver"):
        devices.make_fabric("cuda", 1, 1, "auto")


def test_fewer_cuda_devices_than_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="--devices 3: torch finds 2 CUDA devices; ask for at most so many"):
        devices.make_fabric("auto", 3, 1, "auto")


def test_errors_that_mean_another_process():
    assert devices.is_loss_of_another(torch.distributed.DistBackendError("NCCL: unhandled system error"))
    assert devices.is_loss_of_another(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"))
    assert not devices.is_loss_of_another(RuntimeError("out of memory"))
    assert not devices.is_loss_of_another(TrainingError("gloo"))
