"""Chooses the device, and makes inference sessions on it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convlens_server.errors import ModelError

# Imported where it is used: it takes 18 MB, which a server that loads its models on demand does without at start.
if TYPE_CHECKING:
    import onnxruntime

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
    import onnxruntime

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


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """What NVML says of a GPU at the moment; None where it does not say.

    Attributes:
        uuid: Of the GPU.
        memory_used: Bytes, by all processes.
        memory_total: Bytes.
        utilization: Share of the last second or less in which it computed, 0 … 1.
        power: Watts.
        power_limit: Watts.
    """

    uuid: str
    memory_used: int
    memory_total: int
    utilization: float | None
    power: float | None
    power_limit: float | None


def gpu_figures(device: Device) -> GpuFigures | None:
    """What NVML says of a CUDA device; None for the CPU or without NVML."""
    if device.kind != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = _nvml_handle(pynvml, device.index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
    except Exception:
        return None

    def figure(read: Callable[[Any], float]) -> float | None:
        # Not every GPU tells everything: a part of one (MIG) has no utilization and no power of its own.
        try:
            return float(read(handle))
        except pynvml.NVMLError:
            return None

    return GpuFigures(
        uuid.decode() if isinstance(uuid, bytes) else str(uuid),
        int(memory.used),
        int(memory.total),
        figure(lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
        figure(lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
        figure(lambda gpu: pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000),
    )


def device_memory(device: Device) -> tuple[int, int] | None:
    """Used and total bytes of a CUDA device's memory, by all processes; None for the CPU or without NVML."""
    figures = gpu_figures(device)
    return None if figures is None else (figures.memory_used, figures.memory_total)


def _nvml_handle(pynvml: Any, index: int) -> Any:
    """NVML counts all GPUs of the machine, CUDA those that CUDA_VISIBLE_DEVICES leaves, by index or by UUID."""
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    name = visible[index] if visible else str(index)
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)


def _cuda_problem(index: int) -> str | None:
    """Why CUDA does not work here, or None if a session really runs on it."""
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return (
            "the installed onnxruntime has no CUDA (pip install 'convlens[server-gpu]' in a fresh environment has, and "
            "so has the image convlens/server-gpu)"
        )
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        # onnxruntime would say so in many lines, and then compute on the CPU.
        return "NVIDIA's driver, libcuda.so.1, is not here (a container gets it by --gpus all on NVIDIA's runtime)"
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
