"""Requests on their way through preprocessing, side by side.

Owns the threads and who waits for which: large requests wait for each other, chats for chats, plain prompts for plain
prompts, so that what takes long for one client holds up no others. Never looks into a request.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from enum import Enum, auto

from trident_ensemble.contract.errors import UnavailableError


class Lane(Enum):
    """Which requests wait for each other."""

    PROMPTS = auto()
    CHATS = auto()
    LARGE = auto()


#: How many requests of a lane are worked on at a time. Chats are many, because a few may be slow; see `TimeLimit`.
NUM_THREADS = {Lane.PROMPTS: 2, Lane.CHATS: 8, Lane.LARGE: 2}
#: A request with more bytes than this, about 30 thousand tokens, is large.
LARGE_BYTES = 1 << 17
#: Of all requests that wait or are worked on.
MAX_BYTES = 1 << 28


class Lanes:
    """Does each lane's work in order, on threads of the lane's own. Used by any thread.

    The threads are daemons: work that does not end does not keep the process from its end.
    """

    def __init__(self) -> None:
        self._queues: dict[Lane, queue.SimpleQueue[tuple[Callable[[], None], int] | None]] = {
            lane: queue.SimpleQueue() for lane in Lane
        }
        self._lock = threading.Lock()
        self._num_bytes = 0
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"trident-{lane.name.lower()}", daemon=True)
            for lane in Lane
            for _ in range(NUM_THREADS[lane])
        ]
        for thread in self._threads:
            thread.start()

    def put(self, lane: Lane, num_bytes: int, work: Callable[[], None]) -> None:
        """Have work done.

        Args:
            lane: whose turn it waits for; `LARGE` if it is large.
            num_bytes: what it holds in memory.
            work: must not raise.

        Raises:
            UnavailableError: all that waits holds too much memory already.
        """
        if num_bytes > LARGE_BYTES:
            lane = Lane.LARGE
        with self._lock:
            if self._num_bytes + num_bytes > MAX_BYTES:
                raise UnavailableError(
                    f"requests of {self._num_bytes} bytes wait to be tokenized, and this one's {num_bytes} bytes would"
                    f" make it more than {MAX_BYTES}; try again later"
                )
            self._num_bytes += num_bytes
        self._queues[lane].put((work, num_bytes))

    def close(self, seconds: float) -> None:
        """Let the threads end when all work is done, and wait for so long."""
        for lane, waiting in self._queues.items():
            for _ in range(NUM_THREADS[lane]):
                waiting.put(None)
        for thread in self._threads:
            thread.join(seconds)

    def _work(self, lane: Lane) -> None:
        waiting = self._queues[lane]
        while (item := waiting.get()) is not None:
            work, num_bytes = item
            try:
                work()
            finally:
                with self._lock:
                    self._num_bytes -= num_bytes
