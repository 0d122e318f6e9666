"""What the control groups of this process allow it: cores and memory, in version 1 and in version 2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# Version 1 says "no limit" by the largest number of pages.
_NO_LIMIT = 2**60


class ControlGroups:
    """The limits of this process. A limit of a group holds for all groups below it, so the tightest counts.

    Args:
        root: Below which `proc` and `sys` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc/self/cgroup"
        self._mounts = root / "sys/fs/cgroup"

    def cpus(self) -> float | None:
        """Cores' worth of time that the groups grant; None without a limit."""
        quotas: list[float] = []
        for folder in self._folders("cpu"):
            # Not there, or "max".
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = (folder / "cpu.max").read_text().split()
                quotas.append(int(quota) / int(period))
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota = (folder / "cpu.cfs_quota_us").read_text()
                quotas.append(int(quota) / int((folder / "cpu.cfs_period_us").read_text()))
        # Version 1 says "no limit" by -1.
        return min((quota for quota in quotas if quota > 0), default=None)

    def memory(self) -> int | None:
        """Bytes that the groups allow; None without a limit."""
        return min((limit for limit, _ in self._memory()), default=None)

    def available(self) -> int | None:
        """Bytes that the groups still allow; None without a limit. Cached files that can be dropped do not count."""
        return min((limit - used for limit, used in self._memory()), default=None)

    def _memory(self) -> Iterator[tuple[int, int]]:
        for folder in self._folders("memory"):
            for limit, used, cached in (
                ("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ):
                with contextlib.suppress(OSError, ValueError):
                    most = int((folder / limit).read_text())
                    if most < _NO_LIMIT:
                        yield most, int((folder / used).read_text()) - _figure(folder / "memory.stat", cached)

    def _folders(self, controller: str) -> Iterator[Path]:
        """The folders of this process's groups, those above them included; some need not be there."""
        try:
            lines = self._proc.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top = self._mounts
            elif controller in controllers.split(","):
                top = self._mounts / controller
            else:
                continue
            # In a container the path may be the host's, of which only the top is to be seen.
            folder = top / path.lstrip("/")
            while folder != top and top in folder.parents:
                yield folder
                folder = folder.parent
            yield top


def default_threads() -> int:
    """The cores that this process may use, by its affinity and its control groups; whole ones, at least 1.

    Of 1.5 cores it is 1: a process that has used up its time stands still, transport included, until the next period.
    """
    cores = len(os.sched_getaffinity(0))
    quota = ControlGroups().cpus()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _figure(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
