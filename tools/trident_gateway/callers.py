"""The one a request comes from, and the limits of what that caller may use.

Owns the values that a key or a token comes down to. Never reads a file, never looks at a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import msgspec

#: More than any deployment computes in a minute; what is counted stays exact in the numbers of a Redis script.
MAX_PER_MINUTE = 10**9

#: Likewise for the quotas of a day and a month.
MAX_QUOTA = 10**15

_Rate = Annotated[int, msgspec.Meta(ge=1, le=MAX_PER_MINUTE)]
_Quota = Annotated[int, msgspec.Meta(ge=1, le=MAX_QUOTA)]


class CallerLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of one caller; None where nothing bounds it. The strictest one decides.

    Args:
        requests_per_minute: that may begin; as many may begin at once after a quiet minute.
        input_tokens_per_minute: of prompts.
        output_tokens_per_minute: of answers.
        concurrency: requests at the same time.
        tokens_per_day: of prompts and answers together, in a day of UTC.
        tokens_per_month: likewise, in a calendar month of UTC.
        output_reserve: tokens of an answer that are held from the beginning, if the request may have as many; what an
            answer has beyond them is paid for when it has ended.
    """

    requests_per_minute: _Rate | None = None
    input_tokens_per_minute: _Rate | None = None
    output_tokens_per_minute: _Rate | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = None
    tokens_per_day: _Quota | None = None
    tokens_per_month: _Quota | None = None
    output_reserve: Annotated[int, msgspec.Meta(ge=1, le=MAX_PER_MINUTE)] = 1024

    @property
    def bounds_anything(self) -> bool:
        """Whether there is any limit at all."""
        return self != CallerLimits(output_reserve=self.output_reserve)

    def share(self, count: int) -> CallerLimits:
        """Return what one of `count` gateways may give out when they cannot ask each other; at least one of each."""

        def part(limit: int | None) -> int | None:
            return None if limit is None else max(1, limit // count)

        return CallerLimits(
            requests_per_minute=part(self.requests_per_minute),
            input_tokens_per_minute=part(self.input_tokens_per_minute),
            output_tokens_per_minute=part(self.output_tokens_per_minute),
            concurrency=part(self.concurrency),
            tokens_per_day=part(self.tokens_per_day),
            tokens_per_month=part(self.tokens_per_month),
            output_reserve=self.output_reserve,
        )


@dataclass(frozen=True)
class Caller:
    """The one that a request comes from.

    Args:
        key_id: names the key in logs, or the bearer of a token by a pseudonym; no secret.
        account: what limits are counted by.
        tenant: whom the engine counts the request to; also the salt of the prefix cache.
        models: that may be used, by any of their names; None for all.
        limits: what may be used of them.
        priority: level of requests that ask for none, and the most urgent one that may be asked for; lower goes first.
    """

    key_id: str
    account: str
    tenant: str
    models: frozenset[str] | None = None
    limits: CallerLimits = field(default_factory=CallerLimits)
    priority: int = 0

    def may_use(self, *names: str) -> bool:
        """Return whether a model with these names (its own and its aliases) may be used."""
        return self.models is None or not self.models.isdisjoint(names)

    def priority_for(self, asked: int | None) -> int:
        """Return the level of a request that asks for one, or for none."""
        return self.priority if asked is None else max(asked, self.priority)


#: Everybody, where a gateway asks for no keys.
ANYBODY = Caller(key_id="", account="", tenant="")
