"""Where a training runs: devices, processes and precision, by Lightning's Fabric."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric

from convlens_training.errors import TrainingError


def make_fabric(device: str, devices: int, nodes: int, mixed_precision: str) -> Fabric:
    """A Fabric that is not launched yet.

    Args:
        device: "auto", "cpu" or "cuda".
        devices: Processes on this machine, one for each GPU; under torchrun torchrun decides.
        nodes: Machines; likewise.
        mixed_precision: "auto", which is off on the CPU, "on" or "off". In bfloat16, or in float16 on GPUs without it.

    Raises:
        TrainingError: torch does not find that many devices.
    """
    # It introduces itself, its cloud and its process group to whoever uses it.
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise TrainingError(
            "--device cuda: torch finds no CUDA device; install a driver and a torch built for it, or use --device cpu"
        )
    accelerator = "cuda" if cuda and device != "cpu" else "cpu"
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise TrainingError(
            f"--devices {devices}: torch finds {torch.cuda.device_count()} CUDA devices; ask for at most so many, or "
            "use --device cpu"
        )
    precision: Any = "32-true"
    if mixed_precision == "on" or (mixed_precision == "auto" and accelerator == "cuda"):
        precision = "bf16-mixed" if accelerator == "cpu" or torch.cuda.is_bf16_supported(False) else "16-mixed"
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=precision,
    )


def end_others(fabric: Fabric) -> None:
    """Ends the processes that this one has launched, which after an error would wait for it."""
    for process in getattr(fabric.strategy.launcher, "procs", ()):
        process.kill()


def is_loss_of_another(error: BaseException) -> bool:
    """Whether an error says that another process has ended, or cannot be reached."""
    return isinstance(error, torch.distributed.DistError) or (
        # What gloo raises, which connects CPUs, has no type of its own.
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
