from __future__ import annotations

import threading
import time

import pytest

from convlens_server.errors import Draining
from convlens_server.maximizing.jobs import Jobs, Progress, Stopped


def nothing() -> None:
    pass


class Work:
    """A computation of three images that goes on when the test says so."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.begun = threading.Event()
        self.runs = 0
        self.stopped = threading.Event()
        self.failure: Exception | None = None

    def __call__(self, report):
        self.runs += 1
        self.begun.set()
        try:
            for done in range(4):
                report(Progress(done, 3, 0))
                if done < 3:
                    assert self.steps.acquire(timeout=20)
                if self.failure is not None:
                    raise self.failure
        except Stopped:
            self.stopped.set()
            raise
        return "result"


class Follower(threading.Thread):
    def __init__(self, jobs, work, key="key", check=nothing) -> None:
        super().__init__()
        self.jobs, self.work, self.key, self.check = jobs, work, key, check
        self.seen: list[object] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for step in self.jobs.follow(self.key, self.work, self.check):
                self.seen.append(step)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.join(20)
        assert not self.is_alive()

    def wait(self, count) -> None:
        ends = time.monotonic() + 20
        while len(self.seen) < count:
            assert time.monotonic() < ends
            time.sleep(0.001)


@pytest.fixture
def jobs():
    jobs: Jobs[str] = Jobs()
    yield jobs
    jobs.close()


def test_progress_then_the_result(jobs):
    work = Work()
    follower = Follower(jobs, work)
    for done in range(3):
        follower.wait(done + 1)
        assert follower.seen[-1] == Progress(done, 3, 0)
        work.steps.release()
    follower.end()
    assert follower.seen[-1] == "result"
    progress = follower.seen[:-1]
    assert progress == sorted(progress)


def test_two_callers_at_once_compute_once(jobs):
    work = Work()
    followers = [Follower(jobs, work)]
    assert work.begun.wait(20)
    followers += [Follower(jobs, work) for _ in range(3)]
    for follower in followers:
        follower.wait(1)
    work.steps.release(3)
    for follower in followers:
        follower.end()
        assert follower.seen[-1] == "result"
    assert work.runs == 1


def test_later_ones_compute_anew(jobs):
    work = Work()
    work.steps.release(6)
    assert [*jobs.follow("key", work, nothing)][-1] == "result"
    assert [*jobs.follow("key", work, nothing)][-1] == "result"
    assert work.runs == 2


class Gone(Exception):  # noqa: N818
    pass


def test_it_is_stopped_when_the_last_one_leaves(jobs):
    work = Work()
    leaving = threading.Event()

    def check() -> None:
        if leaving.is_set():
            raise Gone

    first, second = (Follower(jobs, work, check=check) for _ in range(2))
    stays = Follower(jobs, work)
    for each in (first, second, stays):
        each.wait(1)
    leaving.set()
    first.end()
    second.end()
    assert isinstance(first.error, Gone)
    work.steps.release()
    stays.wait(2)
    assert not work.stopped.is_set()
    work.steps.release(2)
    stays.end()
    assert stays.seen[-1] == "result"

    alone = Work()
    leaving.clear()
    last = Follower(jobs, alone, "other", check)
    last.wait(1)
    leaving.set()
    last.end()
    alone.steps.release()
    assert alone.stopped.wait(20)


def test_a_failure_is_everybodys_and_the_next_tries_again(jobs):
    work = Work()
    followers = [Follower(jobs, work) for _ in range(2)]
    for follower in followers:
        follower.wait(1)
    work.failure = ValueError("broken")
    work.steps.release()
    for follower in followers:
        follower.end()
        assert str(follower.error) == "broken"
    work.failure = None
    work.steps.release(3)
    assert [*jobs.follow("key", work, nothing)][-1] == "result"


def test_one_after_another(jobs):
    first, second = Work(), Work()
    one = Follower(jobs, first, "one")
    one.wait(1)
    two = Follower(jobs, second, "two")
    first.steps.release(2)
    assert not second.begun.is_set()
    first.steps.release()
    assert second.begun.wait(20)
    second.steps.release(3)
    one.end()
    two.end()
    assert one.seen[-1] == two.seen[-1] == "result"


def test_who_waits_when_it_closes_is_told(jobs):
    work = Work()
    follower = Follower(jobs, work)
    follower.wait(1)
    never = Work()
    waiting = Follower(jobs, never, "other")
    closing = threading.Thread(target=jobs.close)
    closing.start()
    # It looks whether it is wanted between two images.
    while closing.is_alive() and not work.stopped.is_set():
        work.steps.release()
        time.sleep(0.001)
    closing.join(20)
    follower.end()
    assert isinstance(follower.error, Draining) or follower.seen[-1] == "result"
    waiting.end()
    assert isinstance(waiting.error, Draining)
    assert not never.runs
    with pytest.raises(Draining):
        next(jobs.follow("key", work, nothing))
