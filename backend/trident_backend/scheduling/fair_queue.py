"""Shares the engine among tenants, and orders the requests of each.

Owns the tenants' accounts and the queue of waiting sequences. Pure: knows neither the engine nor a clock.

Tenants are served by virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024):
the tenant that has had the fewest tokens computed, for its weight, goes next. A tenant that comes, or comes back,
starts at the virtual clock (Zhang, "VirtualClock", SIGCOMM 1990), which is at what a tenant of weight 1 would have had:
so idleness earns no credit, and newcomers never pass a tenant that waits for its share. Within a tenant requests go by
arrival, each level of priority being worth some seconds of waiting, so that nothing waits for ever. A sequence that
waits for its parent's prompt is passed over until that is computed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.siblings import num_own_tokens, waits_for_parent


@dataclass
class _Tenant:
    weight: float
    served: float = 0.0
    num_open: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    waiting: list[tuple[float, int, Sequence]] = field(default_factory=list)
    is_listed: bool = False


class FairQueue:
    """The waiting sequences of all tenants, and how much each tenant has been served.

    Args:
        weights: shares of tenants whose share is not 1.
        aging_seconds: waiting time that is worth one level of priority.
    """

    def __init__(self, weights: Mapping[str, float], aging_seconds: float) -> None:
        self._weights = weights
        self._aging_seconds = aging_seconds
        self._tenants: dict[str, _Tenant] = {}
        self._clock = 0.0
        self._open_weight = 0.0
        self._num_open = 0
        # Tenants that may be idle, once each, at no more than what they have been served.
        self._idle: list[tuple[float, str]] = []
        self._members: set[Sequence] = set()
        self._held: dict[Sequence, list[Sequence]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._members

    def urgency(self, sequence: Sequence) -> tuple[float, int]:
        """Return the sort key of a tenant's sequences: the least goes first. It does not change while they wait."""
        return sequence.arrived_at + sequence.priority * self._aging_seconds, sequence.sequence_id

    def enter(self, sequence: Sequence) -> None:
        """Open an account for one more sequence of a tenant."""
        tenant = self._tenants.get(sequence.tenant)
        if tenant is None:
            tenant = self._tenants[sequence.tenant] = _Tenant(self._weights.get(sequence.tenant, 1.0))
        if not tenant.num_open:
            tenant.served = max(tenant.served, self._clock)
            self._open_weight += tenant.weight
        tenant.num_open += 1
        self._num_open += 1

    def leave(self, sequence: Sequence) -> None:
        """Close the account of a sequence that has ended."""
        tenant = self._tenants[sequence.tenant]
        tenant.num_open -= 1
        self._num_open -= 1
        if not self._num_open:
            self._tenants.clear()
            self._idle.clear()
            self._held.clear()
            self._clock = self._open_weight = 0.0
        elif not tenant.num_open:
            self._open_weight -= tenant.weight
            self._list_idle(sequence.tenant, tenant)
            self._forget_idle()

    def _list_idle(self, name: str, tenant: _Tenant) -> None:
        if not tenant.is_listed:
            tenant.is_listed = True
            heapq.heappush(self._idle, (tenant.served, name))

    def _forget_idle(self) -> None:
        """Forget idle tenants once the clock has passed them; until then they have had more than their share."""
        while self._idle and self._idle[0][0] <= self._clock:
            _, name = heapq.heappop(self._idle)
            tenant = self._tenants[name]
            tenant.is_listed = False
            if not tenant.num_open and tenant.served <= self._clock:
                del self._tenants[name]
            elif not tenant.num_open:
                self._list_idle(name, tenant)  # it came back and was served more

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Charge tokens that are being computed to a tenant, and advance the virtual clock."""
        account = self._tenants[tenant]
        account.served += num_tokens / account.weight
        self._clock += num_tokens / self._open_weight

    def served(self, tenant: str) -> float:
        """Return how much a tenant has been served, in tokens for a weight of 1."""
        return self._tenants[tenant].served

    def num_tokens_ahead(self, sequence: Sequence) -> int:
        """Return the tokens that go before a new sequence: all of its tenant's that wait, if it would be the last."""
        tenant = self._tenants.get(sequence.tenant)
        if tenant is None:
            return 0
        is_last = not tenant.waiting or max(tenant.waiting)[0] <= self.urgency(sequence)[0]
        return tenant.num_waiting_tokens if is_last else 0

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence, which must have entered."""
        tenant = self._tenants[sequence.tenant]
        heapq.heappush(tenant.waiting, (*self.urgency(sequence), sequence))
        tenant.num_waiting += 1
        tenant.num_waiting_tokens += num_own_tokens(sequence)
        self._members.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out of the queue."""
        self._members.remove(sequence)
        tenant = self._tenants[sequence.tenant]
        tenant.num_waiting -= 1
        tenant.num_waiting_tokens -= num_own_tokens(sequence)
        # Sequences removed further back are dropped once they are the most, however long the first one waits.
        if len(tenant.waiting) > 2 * tenant.num_waiting:
            tenant.waiting = [entry for entry in tenant.waiting if entry[2] in self._members]
            heapq.heapify(tenant.waiting)

    def tenants(self) -> list[str]:
        """Return the names of tenants that have at least one waiting sequence that can be scheduled."""
        for parent in [parent for parent, (first, *_) in self._held.items() if not waits_for_parent(first)]:
            for sequence in self._held.pop(parent):
                if sequence in self._members:
                    tenant = self._tenants[sequence.tenant]
                    heapq.heappush(tenant.waiting, (*self.urgency(sequence), sequence))
        return [name for name in self._tenants if self.head(name) is not None]

    def head(self, tenant: str) -> Sequence | None:
        """Return a tenant's first waiting sequence that need not wait for its parent; None if there is none."""
        waiting = self._tenants[tenant].waiting
        while waiting:
            first = waiting[0][2]
            if first not in self._members:
                heapq.heappop(waiting)
            elif first.parent is not None and waits_for_parent(first):
                heapq.heappop(waiting)
                self._held.setdefault(first.parent, []).append(first)
            else:
                return first
        return None
