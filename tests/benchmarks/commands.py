"""What the benchmarks' commands have in common: a folder to work in, and `trident`'s own commands that write JSON.

Owns how a benchmark ends when it is told to, or when a command that it runs has failed. Never measures.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

Stage = dict[str, Any]


class BenchmarkError(Exception):
    """What a benchmark cannot go on after; it says what the user can do."""


_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def work_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder, and remove it at the end, also when this process is told to end.

    SIGTERM and SIGHUP end a Python process at once by default. Here they unwind it instead, so that the servers that it
    has started are stopped too. To be entered in the main thread.

    Args:
        parent: holds the new folder; None for the system's temporary folder.

    Raises:
        SystemExit: with the message of a BenchmarkError.
    """
    previous = {number: signal.signal(number, _unwind) for number in _ENDING}
    try:
        with tempfile.TemporaryDirectory(dir=parent) as name:
            yield Path(name)
    except BenchmarkError as error:
        raise SystemExit(str(error)) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _unwind(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run_trident(command: str, words: list[str], file: Path, max_seconds: float | None = None) -> list[Stage]:
    """Run `trident bench` or `trident simulate`, which write JSON to `file`; return its stages.

    Raises:
        BenchmarkError: the command has failed, and has said why on standard error.
        subprocess.TimeoutExpired: it took longer than `max_seconds`.
    """
    line = [sys.executable, "-m", "trident_tools.main", command, *words, "--json", str(file), "--quiet"]
    outcome = subprocess.run(line, check=False, stdout=subprocess.DEVNULL, timeout=max_seconds)
    if outcome.returncode:
        raise BenchmarkError(f"trident {command} has failed: exit status {outcome.returncode}")
    stages: list[Stage] = json.loads(file.read_text(encoding="utf-8"))["stages"]
    return stages


def require_requests(stages: list[Stage]) -> None:
    """Refuse what no figure can be taken from: a stage without an answered request.

    Raises:
        BenchmarkError: there is one.
    """
    for stage in stages:
        if not stage["requests"]:
            load = ", ".join(f"{name} {value}" for name, value in stage["load"].items())
            errors = f"errors: {stage['errors']}" if stage["errors"] else "none began while it was measured"
            raise BenchmarkError(f"no request was answered under {load} ({errors}); raise --duration")
