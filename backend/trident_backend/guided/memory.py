"""The memory that the grammars of one core may take, all together.

Owns the count, and gives back what a holder has let go of. Never holds a grammar itself.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from trident_ensemble.contract.errors import UnavailableError


class Share:
    """A part of the memory; it is given back when nobody refers to it any more."""


class GuideMemory:
    """The memory of one core's grammars. Used by any thread.

    Args:
        max_bytes: what they may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        # What is given back may be so in the middle of anything, also of `take`.
        self._lock = threading.RLock()

    @property
    def num_bytes(self) -> int:
        """How much is taken."""
        return self._num_bytes

    def take(self, num_bytes: int, make_room: Callable[[], bool] = lambda: False) -> Share:
        """Take a share.

        Args:
            num_bytes: its size.
            make_room: called while there is too little room; lets go of something that is not in use, and returns
                whether there was anything.

        Raises:
            UnavailableError: there is no room.
        """
        while not self._try(num_bytes):
            if not make_room():
                raise UnavailableError(
                    f"the guides in use take all of guided_memory_mb, which is {self._max_bytes >> 20}; send the"
                    " request again later"
                )
        share = Share()
        weakref.finalize(share, self._give_back, num_bytes).atexit = False
        return share

    def _try(self, num_bytes: int) -> bool:
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                return False
            self._num_bytes += num_bytes
            return True

    def _give_back(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes -= num_bytes
