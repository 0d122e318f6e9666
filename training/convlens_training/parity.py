"""Runs exports in onnxruntime on held-out images, and compares them with the network they were made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from convlens_training.datasets import Split
from convlens_training.errors import TrainingError
from convlens_training.export import INPUT, OUTPUT
from convlens_training.fitting import accuracy, batches, logits_of

# Largest difference of any logit. Other orders of summation give 1e-5; other arithmetic gives more than 1e-3.
MAX_LOGIT_DIFFERENCE = 1e-3


@dataclass(frozen=True, slots=True)
class Parity:
    """How an export does on held-out images.

    Attributes:
        max_logit_difference: Largest absolute difference of any logit from torch's.
        label_agreement: Fraction of images with the same class first as torch has.
        accuracy: Fraction of images whose label the export has first.
    """

    max_logit_difference: float
    label_agreement: float
    accuracy: float


def check(model: onnx.ModelProto, network: nn.Sequential, held_out: Split, threads: int) -> Parity:
    """Runs an export in onnxruntime on held-out images, and compares it with torch on the CPU.

    Args:
        model: Of `export.to_onnx`; ends in a softmax.
        network: What it was made of, on the CPU.
        held_out: Images and labels.
        threads: Of onnxruntime, ≥ 1.

    Raises:
        TrainingError: A logit differs by more than `MAX_LOGIT_DIFFERENCE`, or is no number.
    """
    scores, exported = outputs_of(model, held_out.images, threads)
    original = logits_of(network, held_out.images, torch.device("cpu"))
    difference = float(np.abs(exported - original).max())
    # Written so that a difference that is no number is refused too.
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise TrainingError(
            f"the export's logits differ from torch's by up to {difference:.2g} on the held-out images, more than "
            f"{MAX_LOGIT_DIFFERENCE:g}, so nothing was published: use another release of torch or onnxruntime "
            f"(here {torch.__version__} and {onnxruntime.__version__})"
        )
    agreement = float((scores.argmax(1) == original.argmax(1)).mean())
    return Parity(difference, agreement, accuracy(scores, held_out.labels))


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
    # Without a type: the session infers it. With one but no shape onnxruntime 1.32 crashes on torchvision's vit_b_16.
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
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
