from __future__ import annotations

import numpy as np
import pytest

from convlens_training import speed


@pytest.fixture
def machine(monkeypatch):
    """Sessions that take as long as their content says, on a clock of their own; gives what they were asked."""
    now, asked = [0.0], []

    class Session:
        def __init__(self, content, threads):
            self.milliseconds = [float(text) for text in content.decode().split()]
            self.threads = threads

        def run(self, outputs, feed):
            asked.append((self.milliseconds[-1], self.threads, feed["image"].shape))
            # The last one is what it goes on taking.
            milliseconds = self.milliseconds.pop(0) if len(self.milliseconds) > 1 else self.milliseconds[0]
            now[0] += milliseconds / 1000

    monkeypatch.setattr(speed, "make_session", Session)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return asked


def pictures(count):
    return np.zeros((count, 4, 4, 1), np.uint8)


def test_images_a_second_of_each(machine):
    rates = speed.images_per_second([b"2", b"8", b"0.5"], pictures(100), batch=16, threads=3)
    assert rates == pytest.approx([16 / 0.002, 16 / 0.008, 16 / 0.0005])
    assert {(threads, shape) for _, threads, shape in machine} == {(3, (16, 4, 4, 1))}


def test_a_batch_of_more_images_than_there_are(machine):
    speed.images_per_second([b"2"], pictures(3), batch=16, threads=1)
    assert {shape for _, _, shape in machine} == {(16, 4, 4, 1)}


def test_they_take_turns_of_the_same_length(machine):
    speed.images_per_second([b"2", b"5"], pictures(1), batch=1, threads=1)
    # Two runs of each to warm it and to see how long it takes; then 10 ms each.
    assert [name for name, _, _ in machine[:18]] == [2, 2, 5, 5] + 2 * ([2] * 5 + [5] * 2)


def test_the_first_runs_and_single_hitches_do_not_count(machine):
    rates = speed.images_per_second([b"900 20 20 20 20 500 20", b"20"], pictures(1), batch=1, threads=1)
    assert rates == pytest.approx([50, 50])


def test_what_takes_long_gets_fewer_turns(machine):
    assert speed.images_per_second([b"3000"], pictures(1), batch=1, threads=1) == pytest.approx([1 / 3])
    assert len(machine) == 2 + 5
