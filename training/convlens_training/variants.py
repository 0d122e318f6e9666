"""Variants of an export: float16 for GPUs, int8 for CPUs; each is measured, and told whether it is worth publishing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from convlens.manifest import PRECISIONS, Manifest, file_name
from convlens_training import precision, speed
from convlens_training.datasets import Split
from convlens_training.export import with_manifest
from convlens_training.parity import Parity, check, compare

FLOAT32 = PRECISIONS[0]

# Batches of the sizes that the server runs, from a single request's to a full queue's. It runs those of a full queue
# beside each other with one thread each, and a single one with a thread for each core.
_BATCHES = (1, 16)


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast the exports are on this machine's CPU; they took turns.

    Attributes:
        batch: Images in a batch.
        threads: Of a run.
        images_per_second: By precision.
    """

    batch: int
    threads: int
    images_per_second: Mapping[str, float]

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def ratio(self, name: str) -> float:
        """How many times as fast as float32 a variant is."""
        return self.images_per_second[name] / self.images_per_second[FLOAT32]


@dataclass(frozen=True, slots=True)
class Variant:
    """An export in another precision.

    Attributes:
        precision: "float16" or "int8".
        content: The file, its manifest included; empty where it could not be made, and then the next two are None.
        parity: How it does on the held-out images, beside torch.
        images_per_second: Its rate with one thread in batches of 16.
        published: Whether it belongs into the repository.
        reason: Why, or why not; with the numbers.
    """

    precision: str
    content: bytes
    parity: Parity | None
    images_per_second: float | None
    published: bool
    reason: str

    def figures(self) -> dict[str, Any]:
        """What the result of a training says of it: JSON values, None where there are none."""
        measured = self.parity
        return {
            "precision": self.precision,
            "published": self.published,
            "accuracy": measured and measured.accuracy,
            "label_agreement": measured and measured.label_agreement,
            "max_logit_difference": measured and _finite(measured.max_logit_difference),
            "images_per_second": self.images_per_second,
            "bytes": len(self.content) or None,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Exports:
    """An export and its variants.

    Attributes:
        float32: The file.
        parity: How it does on the held-out images, beside torch.
        variants: Of each precision that was tried.
        timings: Of all of them, with one thread and with one for each core, in batches of 1 and of 16.
    """

    float32: bytes
    parity: Parity
    variants: tuple[Variant, ...]
    timings: tuple[Timing, ...]

    def files(self) -> dict[str, bytes]:
        """What belongs into a version's folder, by file name: the float32 file, and the variants worth publishing."""
        published = {file_name(each.precision): each.content for each in self.variants if each.published}
        return {file_name(FLOAT32): self.float32, **published}

    def speeds(self) -> list[dict[str, Any]]:
        """The timings as JSON values: batch, threads, and images a second by precision."""
        return [{"batch": each.batch, "threads": each.threads, **each.images_per_second} for each in self.timings]


def make_exports(
    model: onnx.ModelProto,
    manifest: Manifest,
    original: npt.NDArray[np.float32],
    calibration: npt.NDArray[np.uint8],
    held_out: Split,
    *,
    max_drop: float,
    threads: int,
) -> Exports:
    """Makes an export's file and its variants, runs all on the held-out images, and times them.

    A variant is published if its accuracy is at most `max_drop` points of per cent below float32's. One in int8, which
    is for CPUs, must also be at least as fast as float32 on this machine, with one thread and with all, in batches of
    1 and of 16. The speed of one in float16, which is for GPUs, is told and not judged: CPUs compute it in float32.
    One that cannot be made is not published either, whatever the reason: the float32 file is none the worse for it.

    Args:
        model: Of `export.to_onnx`.
        manifest: Of the float32 file, without its metrics.
        original: torch's logits of the held-out images.
        calibration: Training images, uint8 N × height × width × channels.
        held_out: Images and labels.
        max_drop: Points of per cent, ≥ 0.
        threads: Of onnxruntime where nothing is timed, ≥ 1.

    Raises:
        TrainingError: The float32 export does not compute what torch does.
    """
    parity = check(model, original, held_out, threads)
    float32 = with_manifest(model, _manifest(manifest, parity))
    made: dict[str, tuple[bytes, Parity]] = {}
    failures: dict[str, str] = {}
    for name in PRECISIONS[1:]:
        try:
            variant = precision.to_float16(model) if name == "float16" else precision.to_int8(model, calibration)
            own = compare(variant, original, held_out, threads)
            more: dict[str, Any] = {"float32_test_accuracy": parity.accuracy}
            if name == "int8":
                more["calibration_images"] = min(len(calibration), precision.CALIBRATION_IMAGES)
            made[name] = with_manifest(variant, _manifest(replace(manifest, precision=name), own, **more)), own
        except Exception as error:
            failures[name] = _failure(error)
    try:
        timings = _timings(
            {FLOAT32: float32, **{name: content for name, (content, _) in made.items()}}, held_out.images
        )
    except Exception as error:
        timings = ()
        failures |= dict.fromkeys(made, f"its speed could not be measured: {_failure(error)}")
    variants = []
    for name in PRECISIONS[1:]:
        if name in failures:
            variants.append(Variant(name, b"", None, None, published=False, reason=failures[name]))
            continue
        content, own = made[name]
        published, reason = _judged(name, parity, own, max_drop, timings)
        rate = next(each for each in timings if (each.batch, each.threads) == (_BATCHES[-1], 1)).images_per_second[name]
        variants.append(Variant(name, content, own, rate, published, reason))
    return Exports(float32, parity, tuple(variants), timings)


def _timings(contents: Mapping[str, bytes], images: npt.NDArray[np.uint8]) -> tuple[Timing, ...]:
    timings = []
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        for batch in _BATCHES:
            rates = speed.images_per_second(list(contents.values()), images, batch, threads)
            timings.append(Timing(batch, threads, dict(zip(contents, rates, strict=True))))
    return tuple(timings)


def _judged(name: str, float32: Parity, own: Parity, max_drop: float, timings: Iterable[Timing]) -> tuple[bool, str]:
    """Whether a variant is published, and the reason."""
    drop = (float32.accuracy - own.accuracy) * 100
    accuracies = f"accuracy {own.accuracy:.2%}, float32 {float32.accuracy:.2%}"
    ratios = sorted((each.ratio(name), str(each)) for each in timings)
    problems = []
    if _finite(own.max_logit_difference) is None:
        problems.append(f"some of its logits are no finite numbers: they are beyond what {name} can hold")
    # Not above by rounding alone.
    if drop > max_drop + 1e-9:
        problems.append(f"{accuracies}: {drop:.2f} points less, but at most {max_drop:g} are allowed")
    if name == "int8" and (slower := [f"{ratio:.2f} times as fast ({where})" for ratio, where in ratios if ratio < 1]):
        problems.append(f"slower than float32 on this machine: {', '.join(slower)}")
    speeds = f"{ratios[0][0]:.2f} … {ratios[-1][0]:.2f} times as fast on this machine's CPU"
    return not problems, "; ".join(problems or [accuracies, speeds])


def _failure(error: Exception) -> str:
    """A reason, of what onnxruntime and onnx raise: ValueError, KeyError, their own Fail, and more."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, OSError):
        return (
            f"it could not be made ({error.strerror or text}): make room in the folder for temporary files, or name "
            "another one by the environment variable TMPDIR, and train again"
        )
    return f"onnxruntime {onnxruntime.__version__} cannot make it: {text}"


def _manifest(manifest: Manifest, measured: Parity, **more: Any) -> Manifest:
    """The manifest with what was measured of the file that it goes into."""
    difference = _finite(measured.max_logit_difference)
    export = {"label_agreement": measured.label_agreement, "max_logit_difference": difference}
    return replace(
        manifest,
        metrics={"test_accuracy": measured.accuracy},
        training={**manifest.training, "export": export | more},
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
