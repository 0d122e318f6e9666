"""Trainings in processes of their own that are killed at a chosen moment."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from convlens_training import export, pipeline, speed
from convlens_training.cli import main

# Of the trainings that are killed: epochs, and steps of an epoch.
EPOCHS, STEPS = 10, 3


def processes() -> ForkServerContext:
    """Makes processes that have imported all that takes long, and computed nothing."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "convlens_training.pipeline", "torch.onnx", "torch.distributed"])
    return context


def killed(context: ForkServerContext, arguments: Sequence[str], moment: str) -> int:
    """Runs `convlens train` in a process that is killed at a moment; gives its exit code."""
    process = context.Process(target=_train, args=(list(arguments), moment))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _train(arguments: list[str], moment: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stderr = sys.stdout = io.StringIO()
    vars(speed)["images_per_second"] = lambda contents, *_: [1.0] * len(contents)
    _MOMENTS[moment]()
    sys.exit(main(arguments))


def _now() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_step(number: int) -> None:
    done = 0

    def hook(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == number:
            _now()

    register_optimizer_step_pre_hook(hook)


def _half_a_checkpoint(number: int) -> None:
    save, done = torch.save, 0

    def half(state: object, file: Any) -> None:
        nonlocal done
        done += 1
        if done < number:
            save(state, file)
            return
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        _now()

    vars(torch)["save"] = half


def _at_rename(to: str, number: int) -> None:
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event == "os.rename" and Path(arguments[1]).match(to):
            done += 1
            if done == number:
                _now()

    sys.addaudithook(hook)


_MOMENTS = {
    "in the first epoch": lambda: _at_step(2),
    "while the first checkpoint is written": lambda: _half_a_checkpoint(1),
    "before the best checkpoint is in place": lambda: _at_rename("best.ckpt", 2),
    "before the last checkpoint is in place": lambda: _at_rename("last.ckpt", 2),
    "between epochs": lambda: _at_step(2 * STEPS + 1),
    "in the last epoch": lambda: _at_step(EPOCHS * STEPS),
    "before the export": lambda: vars(export).update(to_onnx=lambda *_: _now()),
    "before a version is in place": lambda: _at_rename("models/*/1", 1),
    "before the report": lambda: vars(pipeline).update(write_report=lambda *_: _now()),
}
