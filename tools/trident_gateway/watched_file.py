"""A file whose content may change while the gateway runs.

Owns when it is read again. A file that is broken changes nothing: what was understood last goes on. Never understands a
content itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from trident_ensemble.contract.errors import ConfigError

_log = logging.getLogger(__name__)

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """The content of a file, as it was when it could last be understood.

    Args:
        path: of the file. A mounted Secret is one, too: its name leads to another file after each change.
        kind: what the file is, for messages.
        read: returns its content; raises a `ConfigError` where that cannot be understood.
        on_change: called when there is another content.
        interval_s: between two looks.

    Raises:
        ConfigError: it cannot be understood now, at the start.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        read: Callable[[Path], T],
        *,
        on_change: Callable[[], None] = lambda: None,
        interval_s: float = 2.0,
    ) -> None:
        self._path = path
        self._kind = kind
        self._read = read
        self._on_change = on_change
        self._interval_s = interval_s
        self._seen = self._signature()
        self._watch: asyncio.Task[None] | None = None
        self.value = read(path)
        self.num_failures = 0
        self.is_current = True

    async def start(self) -> None:
        """Begin to look for changes; returns at once."""
        self._watch = asyncio.create_task(self._look_again_and_again())

    async def close(self) -> None:
        """Stop looking."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch

    async def look(self) -> None:
        """Read the file if it has changed; in a thread, for a disk may be slow."""
        value = await asyncio.to_thread(self._read_if_changed)
        if value is not None:
            self.value = value
            self._on_change()

    def _read_if_changed(self) -> T | None:
        signature = self._signature()
        if signature == self._seen:
            return None
        try:
            value = self._read(self._path)
        except ConfigError as error:
            _log.warning("%s has changed, and what was there before stays in force: %s", self._kind, error)
            self.num_failures += 1
            self.is_current = False
            self._seen = signature
            return None
        # What is changed between the look and the reading is read once more.
        self._seen = signature
        self.is_current = True
        return value

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.look()
