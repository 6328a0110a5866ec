"""Orders the prompts that go on within one step.

Owns the order among prompts that have begun and those that wait. Never admits a sequence, sizes a chunk or charges a
tenant: the scheduler does, and asks again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from trident_backend.scheduling.fair_queue import FairQueue
from trident_backend.sequences.sequence import Sequence


class PromptOrder:
    """Puts next the tenant that has been served least, with its most urgent prompt.

    Args:
        waiting: sequences without room in the cache, and how much each tenant has been served.
        begun: running sequences whose prompt is not computed yet.
        admits: whether waiting sequences take part.
    """

    def __init__(self, waiting: FairQueue, begun: Iterable[Sequence], *, admits: bool) -> None:
        self._waiting = waiting
        self._admits = admits
        self._begun: dict[str, deque[Sequence]] = {}
        self._heap: list[tuple[float, float, int, Sequence]] = []
        for sequence in sorted(begun, key=waiting.urgency):
            self._begun.setdefault(sequence.tenant, deque()).append(sequence)
        for tenant in {*self._begun, *(waiting.tenants() if admits else ())}:
            self.rejoin(tenant)

    def rejoin(self, tenant: str) -> None:
        """Let a tenant's next prompt take part, by what the tenant has been served by now."""
        begun = self._begun.get(tenant)
        first = begun[0] if begun else None
        head = self._waiting.head(tenant) if self._admits else None
        if head is not None and (first is None or self._waiting.urgency(head) < self._waiting.urgency(first)):
            first = head
        if first is not None:
            # Between tenants served alike the first to arrive goes first.
            entry = (self._waiting.served(tenant), first.arrived_at, first.sequence_id, first)
            heapq.heappush(self._heap, entry)

    def next(self) -> Sequence | None:
        """Return the sequence whose turn it is; None if there is none. Its tenant takes no part until it rejoins."""
        while self._heap:
            sequence = heapq.heappop(self._heap)[-1]
            if sequence not in self._waiting:
                self._begun[sequence.tenant].popleft()
                return sequence
            if self._admits:
                return sequence
            self.rejoin(sequence.tenant)
        return None

    def close(self, tenant: str) -> None:
        """Stop admitting waiting sequences for the rest of this step: this tenant's first found no room."""
        self._admits = False
        self.rejoin(tenant)
