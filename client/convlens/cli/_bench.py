"""Measures a running server from outside, through the SDK. For figures without Python's own cost see bench/."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter

import numpy as np

from convlens._client import Client
from convlens._errors import Error
from convlens.cli import _show
from convlens.cli._commands import connect


def bench(options: argparse.Namespace) -> int:
    """Sends random pixels from several threads, each of which has one request under way."""
    with connect(options) as client:
        model = client.model(options.model, options.version)
        shape = (options.images, model.height, model.width, model.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        # The connection and the server's first allocations are not what is measured.
        client.classify(pixels, model.model, model.version, top_k=1)
        load = _Load(client, pixels, model.model, model.version, options.requests, options.seconds)
        seconds = load.run(options.concurrency)
    done = len(load.milliseconds)
    if not done:
        error, count = load.errors.most_common(1)[0]
        print(f"convlens: all {count} requests failed: {error}", file=sys.stderr)
        return 1
    p50, p99 = np.percentile(load.milliseconds, [50, 99])
    result = {
        "model": model.model,
        "version": model.version,
        "device": model.device,
        "concurrency": options.concurrency,
        "images_per_request": options.images,
        "requests": done,
        "seconds": round(seconds, 3),
        "images_per_second": round(done * options.images / seconds, 1),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "errors": dict(load.errors),
    }
    if options.json:
        _show.as_json(result)
    else:
        failures = load.errors.total()
        _show.table(
            ["MODEL", "CALLERS", "IMAGES", "REQUESTS", "IMAGES/S", "P50", "P99", "ERRORS"],
            [
                [
                    f"{model.model} {model.version} on {model.device}",
                    options.concurrency,
                    options.images,
                    f"{done:,}",
                    f"{done * options.images / seconds:,.0f}",
                    f"{p50:.2f} ms",
                    f"{p99:.2f} ms",
                    f"{failures:,}",
                ]
            ],
            right={"CALLERS", "IMAGES", "REQUESTS", "IMAGES/S", "P50", "P99", "ERRORS"},
        )
        for error, count in load.errors.most_common():
            print(f"convlens: {count:,} × {error}", file=sys.stderr)
    return 1 if load.errors else 0


class _Load:
    """Threads that ask in turn until a number of requests or of seconds is reached.

    Attributes:
        milliseconds: Of each request that was answered, over all threads.
        errors: How often each error's text came.
    """

    def __init__(
        self,
        client: Client,
        pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
        model: str,
        version: int,
        requests: int | None,
        seconds: float,
    ) -> None:
        self._client, self._pixels, self._model, self._version = client, pixels, model, version
        self._requests, self._seconds = requests, seconds
        self._lock = threading.Lock()
        self._begun = 0
        self._stop = threading.Event()
        self.milliseconds: list[float] = []
        self.errors: Counter[str] = Counter()

    def run(self, concurrency: int) -> float:
        """Returns the seconds that it took."""
        threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(concurrency)]
        start = time.perf_counter()
        self._end = start + self._seconds
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._stop.set()
        return time.perf_counter() - start

    def _ask(self) -> None:
        milliseconds, errors = [], Counter[str]()
        while self._more():
            start = time.perf_counter()
            try:
                self._client.classify(self._pixels, self._model, self._version, top_k=1)
            except Error as error:
                errors[str(error)] += 1
            else:
                milliseconds.append((time.perf_counter() - start) * 1e3)
        with self._lock:
            self.milliseconds += milliseconds
            self.errors += errors

    def _more(self) -> bool:
        if self._stop.is_set():
            return False
        if self._requests is None:
            return time.perf_counter() < self._end
        with self._lock:
            self._begun += 1
            return self._begun <= self._requests
