"""The count of processes that the kernel has killed for lack of memory.

Owns the place where the kernel counts them: the control group of this process, to which its children belong as well.
Never says which process it was.
"""

from __future__ import annotations

import re
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class MemoryKills:
    """A count that begins when this object is made.

    Args:
        groups: the file that names the control groups of this process.
        mount: the folder in which control groups are mounted.
    """

    def __init__(self, groups: Path = _GROUPS, mount: Path = _MOUNT) -> None:
        self._file = _find(groups, mount)
        self._before = self._count()

    def have_happened(self) -> bool:
        """Return whether the kernel has killed any process since; False where it does not say."""
        return self._count() > self._before

    def _count(self) -> int:
        try:
            found = _COUNT.search(self._file.read_text(encoding="utf-8")) if self._file else None
        except OSError:
            return 0
        return int(found[1]) if found else 0


def _find(groups: Path, mount: Path) -> Path | None:
    """Return the file with the count; a container sees its own group at the root of the mount, whatever its name."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "memory":
            folder, name = mount / "memory", "memory.oom_control"
        elif not controllers:
            folder, name = mount, "memory.events"
        else:
            continue
        for place in (folder / group.lstrip("/") / name, folder / name):
            if place.is_file():
                return place
    return None
