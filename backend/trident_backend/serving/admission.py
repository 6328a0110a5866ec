"""The bound on what may be in the core at a time.

Owns the counts of open requests and of their prompt tokens. Usable from any thread. Never waits: what does not fit is
refused at once.
"""

from __future__ import annotations

import threading
from collections import Counter

from trident_backend.engine.protocol import EngineSpec
from trident_ensemble.contract.errors import QueueFullError
from trident_ensemble.contract.settings import CoreSettings


class Admission:
    """The bound: the requests that can run and may wait, and the prompt tokens that the KV cache holds and may wait.

    A request for several answers counts as that many requests, because that many run; its prompt counts once.
    One eighth more is reserved for tenants that have less than that, so that a tenant that fills the queue does not
    shut the others out.

    Args:
        spec: what can run.
        settings: what may wait.
    """

    def __init__(self, spec: EngineSpec, settings: CoreSettings) -> None:
        self._spec = spec
        self._settings = settings
        self._lock = threading.Lock()
        self._max_num_requests = spec.max_num_seqs + settings.max_queue_size
        self._max_num_tokens = spec.num_blocks * spec.block_size + settings.max_queue_tokens
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self.num_requests = 0
        self.num_tokens = 0

    @property
    def capacity(self) -> int:
        """The most requests of all tenants together."""
        return self._max_num_requests + self._max_num_requests // _RESERVE

    def check(self, num_prompt_tokens: int, tenant: str = "", num_sequences: int = 1) -> None:
        """Refuse a request that could not enter now, before anything is made for it.

        Raises:
            QueueFullError: the queue has no room for it now.
        """
        with self._lock:
            self._check(num_prompt_tokens, tenant, num_sequences)

    def enter(self, num_prompt_tokens: int, tenant: str = "", num_sequences: int = 1) -> None:
        """Count one more request for this many answers.

        Raises:
            QueueFullError: the queue has no room for it now.
        """
        with self._lock:
            self._check(num_prompt_tokens, tenant, num_sequences)
            self._count(num_sequences, num_prompt_tokens, tenant)

    def _check(self, num_prompt_tokens: int, tenant: str, num_sequences: int) -> None:
        num_own, num_own_tokens = self._requests.get(tenant, 0), self._tokens.get(tenant, 0)
        if not _has_room(self.num_requests, num_own, num_sequences, self._max_num_requests):
            raise QueueFullError(
                f"the queue is full: {self._spec.max_num_seqs} requests run and max_queue_size "
                f"{self._settings.max_queue_size} wait; try again later"
            )
        if not _has_room(self.num_tokens, num_own_tokens, num_prompt_tokens, self._max_num_tokens):
            raise QueueFullError(
                f"the queue is full: {num_prompt_tokens} tokens beside {self.num_tokens} are more than the KV "
                f"cache and max_queue_tokens {self._settings.max_queue_tokens} hold; try again later"
            )

    def leave(self, num_prompt_tokens: int, tenant: str = "", num_sequences: int = 1) -> None:
        """Count out a request that has entered and now has its final answer."""
        with self._lock:
            self._count(-num_sequences, -num_prompt_tokens, tenant)
            if not self._requests[tenant]:
                del self._requests[tenant], self._tokens[tenant]

    def _count(self, num_requests: int, num_tokens: int, tenant: str) -> None:
        self.num_requests += num_requests
        self.num_tokens += num_tokens
        self._requests[tenant] += num_requests
        self._tokens[tenant] += num_tokens


def _has_room(num_all: int, num_own: int, num_more: int, bound: int) -> bool:
    reserve = bound // _RESERVE
    return num_all + num_more <= bound or (num_own + num_more <= reserve and num_all + num_more <= bound + reserve)


#: The part of the bound that is kept for tenants with little.
_RESERVE = 8
