"""The threads of preprocessing, on which requests are worked on side by side.

Owns the threads, and which requests wait for which: large requests wait for each other, chats for chats and plain
prompts for plain prompts, so that a slow request of one kind does not delay the others. Never looks into a request.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from enum import Enum, auto

from trident_ensemble.contract.errors import QueueFullError


class Lane(Enum):
    """A kind of request; requests of one kind wait for each other."""

    PROMPTS = auto()
    CHATS = auto()
    LARGE = auto()


#: How many requests of a lane are worked on at a time. There are many chats, because `TimeLimit` lets a few be slow.
NUM_THREADS = {Lane.PROMPTS: 2, Lane.CHATS: 8, Lane.LARGE: 2}
#: A request with more bytes than this, about 30 thousand tokens, is large.
LARGE_BYTES = 1 << 17
#: Bytes of all requests that wait or are being worked on.
MAX_BYTES = 1 << 28


class Lanes:
    """Threads that do the work of each lane in order. Any thread may use it.

    The threads are daemons, so work that never ends does not keep the process from ending.
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
        """Queue a piece of work.

        Args:
            lane: the lane in which the work waits for its turn; large work always goes to `LARGE`.
            num_bytes: memory that the request holds.
            work: does the work; must not raise.

        Raises:
            QueueFullError: the waiting requests already hold too much memory.
        """
        if num_bytes > LARGE_BYTES:
            lane = Lane.LARGE
        with self._lock:
            if self._num_bytes + num_bytes > MAX_BYTES:
                raise QueueFullError(
                    f"requests of {self._num_bytes} bytes wait to be tokenized, and this one's {num_bytes} bytes would"
                    f" make it more than {MAX_BYTES}; try again later"
                )
            self._num_bytes += num_bytes
        self._queues[lane].put((work, num_bytes))

    def close(self, seconds: float) -> None:
        """End the threads once all work is done; wait up to `seconds` for each of them."""
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
