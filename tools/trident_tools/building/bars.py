"""The progress of a build, as people see it.

Owns the bars and the lines that stand for them. Never knows what is done.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from trident_compiler.planning.memory_plan import size


class Bars:
    """Progress bars on a terminal, one line for each phase elsewhere, nothing when quiet."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.fields[amount]:>10}"),
            TimeElapsedColumn(),
            console=console,
            disable=console.quiet or not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._bars.stop()

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        """Begin a phase of `total` bytes, or of as many steps without a unit; 0 is unknown."""
        self._finish()
        if self._bars.disable:
            self._console.print(f"{name} ...", markup=False)
        self._task = self._bars.add_task(name, total=total or None, amount=size(total) if total and in_bytes else "")

    def reached(self, done: int) -> None:
        """Report how much of the phase is done."""
        if self._task is not None:
            self._bars.update(self._task, completed=done)

    def _finish(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, total=1, completed=1)
