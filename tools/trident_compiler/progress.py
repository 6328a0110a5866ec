"""How a build says what it is doing.

Owns the interface alone; who watches decides what is shown.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what is going on."""

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        """A phase begins, of `total` bytes, or of steps that mean nothing outside; 0 is unknown."""
        ...

    def reached(self, done: int) -> None:
        """So much of the phase is done."""
        ...


class SilentProgress:
    """Nobody watches."""

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        """Ignored."""

    def reached(self, done: int) -> None:
        """Ignored."""
