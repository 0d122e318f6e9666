"""Variants of an export: float16 for GPUs, int8 for CPUs; each is measured, and told whether it is worth publishing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from convlens.manifest import METADATA_KEY, PRECISIONS, Manifest, ManifestError, file_name
from convlens_training import precision, speed
from convlens_training.datasets import Split
from convlens_training.errors import TrainingError
from convlens_training.export import with_manifest
from convlens_training.fitting import accuracy
from convlens_training.parity import outputs_of

# Points of per cent of accuracy that a variant may lose, unless the caller says otherwise.
MAX_DROP = 0.2

# Batches of the sizes that the server runs, from a single request's to a full queue's. It runs those of a full queue
# beside each other with one thread each, and a single one with a thread for each core.
_BATCHES = (1, 16)


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast a variant is on this machine's CPU, beside the float32 file.

    Attributes:
        batch: Images in a batch.
        threads: Of a run.
        images_per_second: Of the variant.
        float32: Of the float32 file.
    """

    batch: int
    threads: int
    images_per_second: float
    float32: float

    def __str__(self) -> str:
        return (
            f"{self.images_per_second:,.0f} images/s, float32 {self.float32:,.0f} "
            f"(batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''})"
        )


@dataclass(frozen=True, slots=True)
class Variant:
    """An export in another precision.

    Attributes:
        precision: "float16" or "int8".
        content: The file, its manifest included; empty where onnxruntime could not make it.
        accuracy: Fraction of the held-out images whose label it has first.
        label_agreement: Fraction of the held-out images with the same class first as the float32 file has.
        max_logit_difference: Largest absolute difference of any logit from the float32 file's on these images.
        images_per_second: Its rate with one thread in batches of 16.
        timings: Its rates with one thread and with all, in batches of 1 and of 16, beside the float32 file's.
        published: Whether it belongs into the repository.
        reason: Why, or why not; with the numbers.
    """

    precision: str
    content: bytes
    accuracy: float
    label_agreement: float
    max_logit_difference: float
    images_per_second: float
    timings: tuple[Timing, ...]
    published: bool
    reason: str


def make_variants(
    float32: bytes,
    calibration: npt.NDArray[np.uint8],
    held_out: Split,
    *,
    max_drop: float = MAX_DROP,
    threads: int,
    precisions: Iterable[str] = PRECISIONS[1:],
) -> list[Variant]:
    """Makes an export's variants, runs them on the held-out images, and times them.

    A variant is published if its accuracy is at most `max_drop` points of per cent below float32's. One in int8, which
    is for CPUs, must also be at least as fast as float32 on this machine, with one thread and with all, in batches of
    1 and of 16. The speed of one in float16, which is for GPUs, is told and not judged: CPUs compute it in float32.

    Args:
        float32: The file, as `export.with_manifest` makes it.
        calibration: Training images, uint8 N × height × width × channels.
        held_out: Images and labels.
        max_drop: Points of per cent, ≥ 0.
        threads: Of onnxruntime where nothing is timed, ≥ 1.
        precisions: Those to make.

    Raises:
        TrainingError: The float32 file has no manifest, or there is no room for temporary files.
    """
    manifest = manifest_of(float32)
    model = onnx.ModelProto.FromString(float32)
    scores, logits = outputs_of(model, held_out.images, threads)
    original = accuracy(scores, held_out.labels)
    variants = []
    for name in precisions:
        try:
            made = precision.to_float16(model) if name == "float16" else precision.to_int8(model, calibration)
            own_scores, own_logits = outputs_of(made, held_out.images, threads)
            own = accuracy(own_scores, held_out.labels)
            agreement = float((own_scores.argmax(1) == scores.argmax(1)).mean())
            content = with_manifest(made, _manifest(manifest, name, own, agreement, original, len(calibration)))
            timings = _timings(float32, content, held_out.images)
        except OSError as error:
            raise TrainingError(
                f"the {name} variant could not be made: {error.strerror or error}; make room in the folder for "
                "temporary files, or name another one by the environment variable TMPDIR"
            ) from None
        except Exception as error:
            # onnxruntime raises what its parts raise: ValueError, KeyError, its own Fail …
            reason = f"onnxruntime {onnxruntime.__version__} cannot make it: {' '.join(str(error).split())[:300]}"
            variants.append(Variant(name, b"", 0.0, 0.0, 0.0, 0.0, (), published=False, reason=reason))
            continue
        published, reason = _judged(name, original, own, max_drop, timings)
        difference = float(np.abs(own_logits - logits).max())
        rate = next(timing for timing in timings if (timing.batch, timing.threads) == (_BATCHES[-1], 1))
        variants.append(
            Variant(name, content, own, agreement, difference, rate.images_per_second, timings, published, reason)
        )
    return variants


def manifest_of(content: bytes) -> Manifest:
    """The manifest in a model file.

    Raises:
        TrainingError: It is no model, or has none.
    """
    try:
        model = onnx.ModelProto.FromString(content)
        text = next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
        return Manifest.from_json(text)
    except (DecodeError, StopIteration, ManifestError):
        raise TrainingError(
            "the file is no model with a manifest in it, so `convlens train` did not make it: train the model again"
        ) from None


def files(float32: bytes, variants: Iterable[Variant]) -> dict[str, bytes]:
    """What belongs into a version's folder, by file name: the float32 file, and the variants worth publishing."""
    return {
        file_name(PRECISIONS[0]): float32,
        **{file_name(variant.precision): variant.content for variant in variants if variant.published},
    }


def _timings(float32: bytes, content: bytes, images: npt.NDArray[np.uint8]) -> tuple[Timing, ...]:
    cores = len(os.sched_getaffinity(0))
    timings = []
    for threads in sorted({1, cores}):
        for batch in _BATCHES:
            of_float32, of_variant = speed.images_per_second([float32, content], images, batch, threads)
            timings.append(Timing(batch, threads, of_variant, of_float32))
    return tuple(timings)


def _judged(name: str, original: float, own: float, max_drop: float, timings: tuple[Timing, ...]) -> tuple[bool, str]:
    """Whether a variant is published, and the reason."""
    drop = (original - own) * 100
    accuracies = f"accuracy {own:.2%}, float32 {original:.2%}"
    problems = []
    # Not above by rounding alone.
    if drop > max_drop + 1e-9:
        problems.append(f"{accuracies}: {drop:.2f} points less, but at most {max_drop:g} are allowed")
    if name == "int8" and (slower := [timing for timing in timings if timing.images_per_second < timing.float32]):
        problems.append(f"slower than float32 on this machine: {'; '.join(map(str, slower))}")
    return not problems, "; ".join(problems or [accuracies, *map(str, timings)])


def _manifest(manifest: Manifest, name: str, own: float, agreement: float, original: float, images: int) -> Manifest:
    variant = {"float32_test_accuracy": original, "label_agreement": agreement}
    if name == "int8":
        variant["calibration_images"] = min(images, precision.CALIBRATION_IMAGES)
    return replace(
        manifest,
        metrics={"test_accuracy": own},
        training={**manifest.training, "variant": variant},
        precision=name,
    )
