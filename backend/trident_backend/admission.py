"""The bound on what may be in the core at a time.

Owns the count of open requests and of their prompt tokens. Usable from any thread. Never waits: what does not fit is
refused at once.
"""

from __future__ import annotations

import threading

from trident_backend.engine.protocol import EngineSpec
from trident_ensemble.errors import QueueFullError
from trident_ensemble.settings import CoreSettings


class Admission:
    """As many requests as run and may wait, as many prompt tokens as the KV cache holds and may wait.

    Args:
        spec: what can run.
        settings: what may wait.
    """

    def __init__(self, spec: EngineSpec, settings: CoreSettings) -> None:
        self._spec = spec
        self._settings = settings
        self._lock = threading.Lock()
        self.max_num_requests = spec.max_num_seqs + settings.max_queue_size
        self._max_num_tokens = spec.num_blocks * spec.block_size + settings.max_queue_tokens
        self.num_requests = 0
        self.num_tokens = 0

    def enter(self, num_prompt_tokens: int) -> None:
        """One more request.

        Raises:
            QueueFullError: it is one too many, or too long for now.
        """
        with self._lock:
            if self.num_requests >= self.max_num_requests:
                raise QueueFullError(
                    f"the queue is full: {self._spec.max_num_seqs} requests run and max_queue_size "
                    f"{self._settings.max_queue_size} wait; try again later"
                )
            if self.num_tokens + num_prompt_tokens > self._max_num_tokens:
                raise QueueFullError(
                    f"the queue is full: {num_prompt_tokens} tokens beside {self.num_tokens} are more than the KV "
                    f"cache and max_queue_tokens {self._settings.max_queue_tokens} hold; try again later"
                )
            self.num_requests += 1
            self.num_tokens += num_prompt_tokens

    def leave(self, num_prompt_tokens: int) -> None:
        """A request that entered has its final answer."""
        with self._lock:
            self.num_requests -= 1
            self.num_tokens -= num_prompt_tokens
