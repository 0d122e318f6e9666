"""Compares an export with the network it was made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from convlens_training.datasets import Split
from convlens_training.errors import TrainingError
from convlens_training.export import INPUT
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
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    logits = onnx.helper.make_tensor_value_info(model.graph.node[-1].input[0], onnx.TensorProto.FLOAT, None)
    watched.graph.output.append(logits)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The file itself, and a copy that shows its logits too.
    plain, open_ended = (
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for proto in (model, watched)
    )
    scores = np.concatenate([plain.run(None, {INPUT: batch})[0] for batch in batches(held_out.images)])
    exported = np.concatenate([open_ended.run([logits.name], {INPUT: batch})[0] for batch in batches(held_out.images)])
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
