from __future__ import annotations

import os
from pathlib import Path

import pytest

from convlens_server import cgroup
from convlens_server.cgroup import ControlGroups, default_threads

MIB = 2**20


def machine(root: Path, groups: str, files: dict[str, object]) -> ControlGroups:
    """A machine with these control groups, and these files below /sys/fs/cgroup."""
    for path, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{content}\n")
    return ControlGroups(root)


class TestVersion2:
    def test_in_a_container(self, tmp_path):
        files = {
            "cpu.max": "150000 100000",
            "memory.max": 100 * MIB,
            "memory.current": 60 * MIB,
            "memory.stat": f"anon 1\ninactive_file {10 * MIB}\nactive_file 5",
        }
        groups = machine(tmp_path, "0::/", files)
        assert groups.cpus() == 1.5
        assert groups.memory() == 100 * MIB
        assert groups.available() == 50 * MIB

    def test_without_limits(self, tmp_path):
        groups = machine(tmp_path, "0::/", {"cpu.max": "max 100000", "memory.max": "max", "memory.current": 5})
        assert (groups.cpus(), groups.memory(), groups.available()) == (None, None, None)

    def test_the_tightest_of_the_groups_above_counts(self, tmp_path):
        files = {
            "a/b/cpu.max": "400000 100000",
            "a/cpu.max": "200000 100000",
            "a/b/memory.max": 300 * MIB,
            "a/b/memory.current": 10 * MIB,
            "a/memory.max": 400 * MIB,
            "a/memory.current": 390 * MIB,
        }
        groups = machine(tmp_path, "0::/a/b", files)
        assert groups.cpus() == 2.0
        assert groups.memory() == 300 * MIB
        assert groups.available() == 10 * MIB


class TestVersion1:
    def test_in_a_container(self, tmp_path):
        """/proc has the path on the host, of which the container sees the end as the top."""
        files = {
            "cpu/cpu.cfs_quota_us": 50000,
            "cpu/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": 100 * MIB,
            "memory/memory.usage_in_bytes": 40 * MIB,
            "memory/memory.stat": f"cache 7\ninactive_file 1\ntotal_inactive_file {MIB}",
        }
        groups = machine(tmp_path, "5:cpuacct,cpu:/docker/x\n4:memory:/docker/x\n0::/docker/x", files)
        assert groups.cpus() == 0.5
        assert groups.memory() == 100 * MIB
        assert groups.available() == 61 * MIB

    def test_without_limits(self, tmp_path):
        files = {
            "cpu/cpu.cfs_quota_us": -1,
            "cpu/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "memory/memory.usage_in_bytes": 1,
        }
        groups = machine(tmp_path, "5:cpu:/\n4:memory:/", files)
        assert (groups.cpus(), groups.memory(), groups.available()) == (None, None, None)


def test_a_system_without_control_groups(tmp_path):
    groups = ControlGroups(tmp_path)
    assert (groups.cpus(), groups.memory(), groups.available()) == (None, None, None)


@pytest.mark.parametrize(
    ("quota", "cores", "threads"), [(None, 4, 4), (4.0, 2, 2), (2.0, 4, 2), (1.9, 4, 1), (0.1, 4, 1), (64.0, 64, 64)]
)
def test_threads_are_whole_cores(monkeypatch, quota, cores, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(cgroup.ControlGroups, "cpus", lambda self: quota)
    assert default_threads() == threads
