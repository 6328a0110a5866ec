"""This machine's memory and CPU.

Owns the reading of /proc and of the control group's limits. Never decides what to do with it.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """A machine to plan for.

    Args:
        free_bytes: memory that can still be taken without swapping.
        cpu: the CPU's model, as its maker calls it. Its speed is measured, never concluded from this.
    """

    free_bytes: int
    cpu: str


def this_machine() -> Machine:
    """Return the machine this process runs on, its container's memory limit included."""
    model = _line("/proc/cpuinfo", "model name").strip() or platform.processor() or platform.machine()
    return Machine(min(_available(), _container_room()), model)


def machine_bytes() -> int:
    """Return all memory of this machine, taken or free, or as much of it as its container may take."""
    meminfo = _line("/proc/meminfo", "MemTotal").split()
    total = int(meminfo[0]) * 1024 if meminfo else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int((_CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # there is no limit
        return total


def _available() -> int:
    meminfo = _line("/proc/meminfo", "MemAvailable").split()
    if meminfo:
        return int(meminfo[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_room() -> int:
    """Return the bytes that the control group (version 2) leaves; page cache, which can be dropped, counts as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if limit == "max":
        return 1 << 62
    return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))


def _line(path: str, key: str) -> str:
    """Return the value of the first `key: value` line; empty where there is none."""
    try:
        with Path(path).open(encoding="utf-8") as lines:
            return next((line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == key), "")
    except OSError:
        return ""
