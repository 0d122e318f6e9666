"""Chooses the device, and makes inference sessions on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import onnxruntime

from convlens_server.errors import ModelError

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


class DeviceError(Exception):
    """The device that was asked for is not here; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where sessions run.

    Attributes:
        kind: "cpu" or "cuda".
        index: Of the CUDA device; 0 for the CPU.
        reason: Why this one, for the log.
    """

    kind: str
    index: int = 0
    reason: str = ""

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.kind == "cuda" else "cpu"


def choose_device(requested: str) -> Device:
    """Finds the device for "auto", "cpu", "cuda" or "cuda:<index>".

    Raises:
        DeviceError: CUDA was asked for and does not work here. It never falls back to the CPU in silence.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", requested)
    if match is None:
        raise DeviceError(f"device {requested!r} is unknown: use auto, cpu, cuda or cuda:<index>")
    if requested == "cpu":
        return Device("cpu", reason="asked for")
    index = int(match[1] or 0)
    problem = _cuda_problem(index)
    if problem is None:
        return Device("cuda", index, "asked for" if requested != "auto" else "a CUDA device answers")
    if requested == "auto":
        return Device("cpu", reason=problem)
    raise DeviceError(
        f"device {requested} does not work: {problem}. Use --device cpu, or --device auto to let it choose"
    )


def make_session(model: bytes | str, device: Device, threads: int) -> onnxruntime.InferenceSession:
    """An inference session of an ONNX model on a device.

    Args:
        model: The serialised model, or its path.
        device: Where it runs; nothing falls back to another device but operators that CUDA does not have.
        threads: Threads of one run on the CPU.

    Raises:
        ModelError: onnxruntime refuses the model; the text holds its reason.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # 3 is "error": what onnxruntime warns of (unused initialisers, nodes left on the CPU) is nothing a user can mend.
    options.log_severity_level = 3
    # Threads that spin while they wait for work take the core from the transport.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # In a float16 file its result (Transpose, Cast to float32 and MatMul in one) makes onnxruntime 1.24 … 1.32 follow a
    # null pointer on the CPU (microsoft/onnxruntime#28392): torchvision's vit_b_16 ended the process.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "MatmulTransposeFusion")
    providers: list[Any] = [_CPU]
    if device.kind == "cuda":
        # Heuristic: an exhaustive search at each new batch size costs seconds.
        settings = {"device_id": str(device.index), "cudnn_conv_algo_search": "HEURISTIC"}
        providers.insert(0, (_CUDA, settings))
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:
        raise ModelError(f"onnxruntime {onnxruntime.__version__} refuses the model: {_one_line(error)}") from None
    # onnxruntime-gpu lists CUDA as available on any machine; only the session's own list tells the truth.
    if device.kind == "cuda" and _CUDA not in session.get_providers():
        raise DeviceError(f"device {device} does not work: onnxruntime fell back to {session.get_providers()}")
    return session


def default_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def device_memory(device: Device) -> tuple[int, int] | None:
    """Used and total bytes of a CUDA device's memory, by all processes; None for the CPU or without NVML."""
    if device.kind != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(device.index))
    except Exception:
        return None
    return int(info.used), int(info.total)


def _cuda_problem(index: int) -> str | None:
    """Why CUDA does not work here, or None if a session really runs on it."""
    if _CUDA not in onnxruntime.get_available_providers():
        return "the installed onnxruntime has no CUDA (pip install 'convlens[server-gpu]' in a fresh environment has)"
    if hasattr(onnxruntime, "preload_dlls"):
        # Finds CUDA and cuDNN in NVIDIA's Python packages.
        onnxruntime.preload_dlls()
    try:
        make_session(_identity_model(), Device("cuda", index), 1)
    except (ModelError, DeviceError) as error:
        return str(error)
    return None


def _identity_model() -> bytes:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
