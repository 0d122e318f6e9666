"""What h2load prints is read rightly, and what went wrong is never taken for a result."""

from __future__ import annotations

import shutil

import pytest

import h2load
from contenders import check_counts, check_sizes
from h2load import Load, LoadError, Summary, frame, parse_summary, percentile, read_latencies

# As printed by nghttp2 1.52.0 for `-D 2 -c4 -m8`.
OUTPUT = """\
Main benchmark duration is over for thread #0. Stopping all clients.
Stopped all clients for thread #0

finished in 2.00s, 6601.50 req/s, 646.81KB/s
requests: 13203 total, 13235 started, 13203 done, 13203 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 13203 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.26MB (1324670) total, 38.97KB (39909) headers (space savings 96.27%), 644.68KB (660150) data
                     min         max         mean         sd        +/- sd
time for request:      707us     19.74ms      4.79ms      2.45ms    78.13%
time for connect:      180us       236us       214us        23us    75.00%
time to 1st byte:     6.07ms     12.01ms      9.15ms      2.49ms    50.00%
req/s           :    1640.68     1657.20     1649.63        8.44    75.00%
"""
LOAD = Load(4, 8)


def test_summary():
    assert parse_summary(OUTPUT) == Summary(requests=13203, requests_per_second=6601.5, data_bytes=660150)


@pytest.mark.parametrize(
    ("instead", "of"),
    [
        ("13203 done, 13200 succeeded, 3 failed", "13203 done, 13203 succeeded, 0 failed"),
        ("0 failed, 2 errored", "0 failed, 0 errored"),
        ("0 errored, 1 timeout", "0 errored, 0 timeout"),
    ],
)
def test_failed_requests_are_an_error(instead, of):
    with pytest.raises(LoadError, match="not every request was answered"):
        parse_summary(OUTPUT.replace(of, instead))


def test_no_answer_is_an_error():
    with pytest.raises(LoadError, match="give more --seconds"):
        parse_summary(OUTPUT.replace("13203 done, 13203 succeeded", "0 done, 0 succeeded"))


def test_other_text_is_an_error():
    with pytest.raises(LoadError, match=r"no summary.*unable to resolve"):
        parse_summary("unable to resolve host\n")


def test_latencies(tmp_path):
    log = tmp_path / "log"
    log.write_text("1795599645108369\t200\t5766\n1795599645108371\t200\t259\n1795599645108372\t200\t1000\n")
    assert read_latencies(log) == [0.259, 1.0, 5.766]


def test_percentile():
    values = [float(n) for n in range(101)]
    assert [percentile(values, percent) for percent in (50, 99)] == [50, 99]
    assert percentile([3.0], 99) == 3


def test_frame():
    assert frame(b"x" * 258) == b"\x00\x00\x00\x01\x02" + b"x" * 258


def test_without_h2load_the_text_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LoadError, match="apt-get install nghttp2-client"):
        h2load.require_h2load()


@pytest.mark.parametrize("size", [5000, 5000 + 32 * 50])
def test_sizes_of_answers(size):
    check_sizes(size, 100, 50, LOAD)


@pytest.mark.parametrize("size", [4950, 5000 + 33 * 50])
def test_missing_answers_are_an_error(size):
    with pytest.raises(LoadError, match="some were errors"):
        check_sizes(size, 100, 50, LOAD)


def test_counts_of_the_server():
    check_counts({"OK": 7}, {"OK": 117, "CANCELLED": 22}, 100, LOAD)


@pytest.mark.parametrize(
    "after",
    [
        {"OK": 106},
        {"OK": 140},
        {"OK": 107, "CANCELLED": 33},
        {"OK": 107, "RESOURCE_EXHAUSTED": 1},
        {},
    ],
)
def test_other_counts_are_an_error(after):
    with pytest.raises(LoadError, match="h2load counts 100 answers"):
        check_counts({"OK": 7}, after, 100, LOAD)
