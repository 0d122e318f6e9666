"""What a version of a model has done so far, counted as Triton counts it: for ModelStatistics and the nv_ metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from convlens_server.engine import Run

# Triton's reasons of a failure, by status code; any other is OTHER.
_REASONS = {
    "RESOURCE_EXHAUSTED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


@dataclass(slots=True)
class Duration:
    """How often something was done, and how many seconds that took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        """Adds `count` times, `seconds` in all."""
        self.count += count
        self.seconds += seconds


@dataclass(slots=True)
class Compute:
    """The three parts of a batch's computation: joining the images, the inference session, making the answers."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def add(self, count: int, run: Run, output_seconds: float) -> None:
        """Adds a run, `count` times."""
        self.input.add(count, count * run.input_seconds)
        self.infer.add(count, count * (run.seconds - run.input_seconds))
        self.output.add(count, count * output_seconds)


@dataclass(slots=True)
class Statistics:
    """Counts of one version. Not thread-safe: its owner locks.

    Attributes:
        images: That were computed.
        runs: Of the engine.
        last: When the last answer was made, seconds since 1970; 0 if never.
        success: Answered requests, from arrival to answer.
        queue: Their time in the queue.
        compute: Of each request its batch's.
        failures: Requests that were not answered, by reason.
        failed: Their number and time.
        by_size: Of each run, by its number of images.
    """

    images: int = 0
    runs: int = 0
    last: float = 0.0
    success: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Compute = field(default_factory=Compute)
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    failed: Duration = field(default_factory=Duration)
    by_size: dict[int, Compute] = field(default_factory=dict)

    def fail(self, code: str, seconds: float) -> None:
        """Counts a request that failed with a status code, `seconds` after its arrival."""
        self.failures[_REASONS.get(code, "OTHER")] += 1
        self.failed.add(1, seconds)

    def batch(
        self, images: int, run: Run, output_seconds: float, queued: Sequence[float], totals: Sequence[float], now: float
    ) -> None:
        """Counts an answered batch; `queued` and `totals` have an entry for each of its requests."""
        count = len(totals)
        self.images += images
        self.runs += 1
        self.last = now
        self.success.add(count, sum(totals))
        self.queue.add(count, sum(queued))
        self.compute.add(count, run, output_seconds)
        size = self.by_size.get(images)
        if size is None:
            size = self.by_size[images] = Compute()
        size.add(1, run, output_seconds)

    def beside(self, images: int, queued: float, total: float, now: float) -> None:
        """Counts a request that was answered by the lens alone."""
        self.images += images
        self.last = now
        self.success.add(1, total)
        self.queue.add(1, queued)
