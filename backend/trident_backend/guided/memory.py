"""The memory that all grammars of one core may take together.

Owns the count, and gives memory back when its holder is gone. Never holds a grammar itself.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from trident_ensemble.contract.errors import UnavailableError


class Reservation:
    """A part of the memory, given back when the last reference to this object is gone."""


class GuideMemory:
    """The memory of one core's grammars. Any thread may use it.

    Args:
        max_bytes: memory that all of them may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        # A finalizer may give memory back in the middle of anything, even of `take`.
        self._lock = threading.RLock()

    @property
    def num_bytes(self) -> int:
        """Bytes that are taken."""
        return self._num_bytes

    def take(self, num_bytes: int, make_room: Callable[[], bool] = lambda: False) -> Reservation:
        """Reserve memory for a grammar.

        Args:
            num_bytes: size of the reservation.
            make_room: called while there is too little room; drops something that is not in use, and returns whether
                there was anything to drop.

        Raises:
            UnavailableError: there is not enough room.
        """
        while not self._try(num_bytes):
            if not make_room():
                raise UnavailableError(
                    f"the guides in use take all of guided_memory_mb, which is {self._max_bytes >> 20}; send the"
                    " request again later"
                )
        reservation = Reservation()
        weakref.finalize(reservation, self._give_back, num_bytes).atexit = False
        return reservation

    def _try(self, num_bytes: int) -> bool:
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                return False
            self._num_bytes += num_bytes
            return True

    def _give_back(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes -= num_bytes
