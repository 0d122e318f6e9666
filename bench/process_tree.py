"""CPU time and memory of a server that is more than one process, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
# Of /proc/PID/stat, counted from the third field on.
_PARENT, _TIMES, _STARTED = 1, slice(11, 15), 19


class Process(NamedTuple):
    """A process; its id alone may be another's one day.

    Attributes:
        pid: Its id.
        started: When, in ticks since the machine started.
    """

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree of processes takes.

    Attributes:
        processes: That there are.
        cpu_seconds: User and system time of those, and of their children that have ended.
        memory_mb: Proportional resident memory in MB (10^6 bytes): a page that several share counts once.
    """

    processes: int
    cpu_seconds: float
    memory_mb: float


def tree(pid: int) -> list[Process]:
    """A process and all below it, itself first; nothing where it is not there."""
    children: dict[int, list[Process]] = {}
    found: list[Process] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _fields(int(folder.name))):
            process = Process(int(folder.name), int(fields[_STARTED]))
            children.setdefault(int(fields[_PARENT]), []).append(process)
            if process.pid == pid:
                found.append(process)
    for each in found:
        found += children.get(each.pid, ())  # walked while it grows
    return found


def usage(pid: int) -> Usage:
    """What a process and all below it have taken so far."""
    pids = [process.pid for process in tree(pid)]
    return Usage(len(pids), sum(map(_cpu_seconds, pids)), sum(map(_memory_mb, pids)))


def end(processes: Iterable[Process]) -> None:
    """Kills those that are still there."""
    for process in processes:
        fields = _fields(process.pid)
        if fields and int(fields[_STARTED]) == process.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def _fields(pid: int) -> list[str]:
    # The second field, the command's name in brackets, may hold blanks.
    return _read(pid, "stat").rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    return sum(map(int, _fields(pid)[_TIMES])) / _TICKS


def _memory_mb(pid: int) -> float:
    lines = _read(pid, "smaps_rollup").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def _read(pid: int, name: str) -> str:
    """A file of /proc/PID; nothing where the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
