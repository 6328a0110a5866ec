"""The model processes ("stubs") of a running tritonserver, seen through /proc.

Triton never restarts a stub that died, and goes on calling its model ready, so this command must notice it. Owns the
list of stubs, which of them have gone, and the shared memory that killed ones leave behind. Never ends a process.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_SHARED = Path("/dev/shm")  # noqa: S108 (where the processes of one server share memory)
_STUB = "triton_python_backend_stub"
#: Fields of /proc/PID/stat, counted from the state, which is the third. The last one is set once a process has ended
#: and its parent has not collected its status.
_PARENT, _STARTED, _WAIT_STATUS = 1, 19, 49
#: Triton's own regions and the core's acknowledgement tables, as /proc/PID/maps lists them.
_SHARED_MEMORY = re.compile(r"\s(/dev/shm/(?:triton_\w+_shm_region_|trident-)\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Stub:
    """The process of one model instance.

    Args:
        pid: the process id.
        started: the start time in clock ticks, which distinguishes it from a later process with the same id.
        model: the model's name.
        version: the model's version.
        instance: Triton's name of the instance.
    """

    pid: int
    started: int
    model: str
    version: str
    instance: str

    @property
    def serves(self) -> bool:
        """Whether this is an instance, and not the stub that Triton asks for a model's configuration."""
        return self.instance != self.model

    @property
    def place(self) -> tuple[str, str, str]:
        """The model, version and instance that a successor of this process would have."""
        return self.model, self.version, self.instance


class StubWatch:
    """A watch over the stubs of one server.

    Args:
        server_pid: the process id of tritonserver.
    """

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self._known: dict[int, Stub] = {}
        self._shared_memory: set[Path] = set()

    def discover(self) -> None:
        """Find new stubs and the shared memory in use; takes about 15 microseconds for each process of the machine."""
        # The server maps what it shares with a stub before there is one.
        self._note_shared_memory(self._server_pid)
        for folder in _PROC.glob("[0-9]*"):
            pid = int(folder.name)
            status = _status(pid)
            if status is None or status[0] != self._server_pid:
                continue
            stub = _stub(pid, status[1])
            if stub is not None:
                self._known[pid] = stub
                self._note_shared_memory(pid)

    def living(self) -> list[Stub]:
        """Return the known stubs that run."""
        return [stub for stub in self._known.values() if _runs(stub)]

    def fallen(self) -> list[Stub]:
        """Return the known instances that have gone without a successor, which a reload of a model starts."""
        dead = [stub for stub in self._known.values() if stub.serves and not _runs(stub)]
        if dead:
            self.discover()
        taken = {stub.place for stub in self.living()}
        return [stub for stub in dead if stub.place not in taken]

    def forget(self, stub: Stub) -> None:
        """Forget a stub that was meant to end."""
        if self._known.get(stub.pid) == stub:
            del self._known[stub.pid]

    def fallen_while_loading(self) -> list[Stub]:
        """Return the known stubs that ended with an error and without a successor.

        Triton collects the exit status of stubs that it ends itself; the stub that was asked for a model's
        configuration is followed by the instances of the model.
        """
        living = self.living()
        models, places = {stub.model for stub in living}, {stub.place for stub in living}
        return [
            stub
            for stub in self._known.values()
            if not _runs(stub)
            and self.exit_code(stub)
            and (stub.place not in places if stub.serves else stub.model not in models)
        ]

    @staticmethod
    def exit_code(stub: Stub) -> int | None:
        """Return the exit code of a stub that has gone, as `subprocess` has it; None if Triton has collected it."""
        fields = _stat(stub.pid)
        if fields is None or int(fields[_STARTED]) != stub.started:
            return None
        return os.waitstatus_to_exitcode(int(fields[_WAIT_STATUS]))

    def remove_shared_memory(self) -> None:
        """Remove what the stubs left in /dev/shm; only for a server that has ended."""
        for path in self._shared_memory:
            with contextlib.suppress(OSError):
                path.unlink()
                if path.parent != _SHARED:
                    path.parent.rmdir()

    def _note_shared_memory(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            maps = (_PROC / str(pid) / "maps").read_text(encoding="utf-8", errors="replace")
            self._shared_memory.update(map(Path, _SHARED_MEMORY.findall(maps)))


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None if there is no such process, not even a zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _status(pid: int) -> tuple[int, int] | None:
    """Return parent and start time of a running process; None if it does not run."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else (int(fields[_PARENT]), int(fields[_STARTED]))


def _runs(stub: Stub) -> bool:
    status = _status(stub.pid)
    return status is not None and status[1] == stub.started


def _stub(pid: int, started: int) -> Stub | None:
    """Return the stub that a process is, or None, by its command line.

    A stub's is `<stub> <repository>/<model>/<version>/model.py <shared memory> ... <instance> <backend>`.
    """
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return None
    if len(words) < 4 or Path(words[0]).name != _STUB:
        return None
    version = Path(words[1]).parent
    return Stub(pid, started, version.parent.name, version.name, words[-2])
