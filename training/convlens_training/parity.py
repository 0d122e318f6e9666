"""Runs exports in onnxruntime on held-out images, and compares them with the network they were made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from convlens_training.datasets import Split
from convlens_training.errors import TrainingError
from convlens_training.export import INPUT, OUTPUT
from convlens_training.fitting import accuracy, batches

# Largest difference of any logit. Other orders of summation give 1e-5; other arithmetic gives more than 1e-3.
MAX_LOGIT_DIFFERENCE = 1e-3
# Where logits are larger than 10, this share of the largest: an untrained inception_v3 has some of 5e7, and both torch
# and onnxruntime are off by up to 6e-6 of it from what float64 gives.
_MAX_SHARE = 1e-4


@dataclass(frozen=True, slots=True)
class Parity:
    """How an export does on held-out images.

    Attributes:
        max_logit_difference: Largest absolute difference of any logit from torch's.
        label_agreement: Fraction of images with the same class first as torch has.
        accuracy: Fraction of images whose label the export has first.
        logits: The export's, float32 N × classes.
    """

    max_logit_difference: float
    label_agreement: float
    accuracy: float
    logits: npt.NDArray[np.float32] = field(repr=False, compare=False)


def compare(model: onnx.ModelProto, original: npt.NDArray[np.float32], held_out: Split, threads: int) -> Parity:
    """Runs an export, written out and read again, in onnxruntime on held-out images, and compares it with torch.

    Args:
        model: Of `export.to_onnx`, or a variant of one; ends in a softmax.
        original: torch's logits of these images, on the CPU, N × classes.
        held_out: Images and labels.
        threads: Of onnxruntime, ≥ 1.
    """
    _, logits = outputs_of(model, held_out.images, threads)
    agreement = float((logits.argmax(1) == original.argmax(1)).mean())
    return Parity(float(np.abs(logits - original).max()), agreement, accuracy(logits, held_out.labels), logits)


def check(model: onnx.ModelProto, original: npt.NDArray[np.float32], held_out: Split, threads: int) -> Parity:
    """Like `compare`, for a float32 export, which must compute what torch does.

    Raises:
        TrainingError: A logit differs by more than `limit` allows, or is no number.
    """
    measured = compare(model, original, held_out, threads)
    # Written so that a difference that is no number, or infinite, is refused too.
    if not measured.max_logit_difference < limit(original):
        raise TrainingError(
            f"the export's logits differ from torch's by up to {measured.max_logit_difference:.2g} on the held-out "
            f"images, more than {limit(original):.2g}, so nothing was published: use another release of torch or "
            f"onnxruntime (here {torch.__version__} and {onnxruntime.__version__})"
        )
    return measured


def limit(original: npt.NDArray[np.float32]) -> float:
    """By how much a float32 export's logits may differ from torch's, which are given (N × classes)."""
    return max(MAX_LOGIT_DIFFERENCE, _MAX_SHARE * float(np.abs(original).max()))


def outputs_of(
    model: onnx.ModelProto, images: npt.NDArray[np.uint8], threads: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Runs a model in onnxruntime as the server does it: on the CPU, with its logits as a second output.

    Args:
        model: Of `export.to_onnx`, or a variant of one; ends in a softmax. Left as it is.
        images: uint8 N × height × width × channels.
        threads: Of onnxruntime, ≥ 1.

    Returns:
        Scores and logits, N × classes each.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    logits = model.graph.node[-1].input[0]
    # Without a type: the session infers it.
    watched.graph.output.append(onnx.ValueInfoProto(name=logits))
    session = make_session(watched.SerializeToString(), threads)
    runs = [session.run([OUTPUT, logits], {INPUT: batch}) for batch in batches(images)]
    return np.concatenate([first for first, _ in runs]), np.concatenate([second for _, second in runs])


def make_session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU with the settings of the server's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # In a float16 file its result (Transpose, Cast to float32 and MatMul in one) makes onnxruntime 1.24 … 1.32 follow a
    # null pointer on the CPU (microsoft/onnxruntime#28392): torchvision's vit_b_16 ended the process.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "MatmulTransposeFusion")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
