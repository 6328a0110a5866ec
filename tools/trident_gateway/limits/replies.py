"""What a client is told of its limits.

Owns the headers and the texts of refusals. Never decides anything.
"""

from __future__ import annotations

from trident_gateway.errors import ApiError, QuotaError, RateLimitError, TooLargeForLimitError
from trident_gateway.limits.standing import Demand, Shortage, rates
from trident_gateway.limits.store import Outcome

_WORDS = {
    "requests": "requests a minute",
    "input_tokens": "input tokens a minute",
    "output_tokens": "output tokens a minute",
    "concurrency": "requests at the same time",
    "day": "tokens a day",
    "month": "tokens a month",
}


def limit_headers(outcome: Outcome, demand: Demand) -> list[tuple[bytes, bytes]]:
    """Return limit, remaining and reset of requests and of tokens; of two limits for tokens, the one that is nearer."""
    every = rates(outcome.limits, outcome.standing, demand)
    headers = []
    for kind in ("requests", "tokens"):
        of_kind = [rate for rate in every if rate.kind == kind]
        if of_kind:
            rate = min(of_kind, key=lambda one: one.level / one.limit)
            suffix = kind.encode()
            headers += [
                (b"x-ratelimit-limit-" + suffix, b"%d" % rate.limit),
                (b"x-ratelimit-remaining-" + suffix, b"%d" % rate.remaining),
                (b"x-ratelimit-reset-" + suffix, _duration(rate.reset_ms)),
            ]
    return headers


def _duration(milliseconds: int) -> bytes:
    """Return a time as OpenAI's headers have it: `12ms`, `1.5s`, `6m0s`."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return (f"{minutes}m{seconds}s" if minutes else f"{seconds}s").encode()


def too_large_error(found: Shortage, demand: Demand) -> TooLargeForLimitError:
    """Return the refusal of a request that exceeds a limit by itself."""
    if found.name == "input_tokens":
        size = f"has about {demand.input_tokens} input tokens"
    elif found.name == "output_tokens":
        size = f"asks for {demand.output_tokens} output tokens or more"
    else:
        size = f"may need {demand.tokens} tokens"
    return TooLargeForLimitError(
        f"The request {size}, which is more than this key's limit of {found.limit} {_WORDS[found.name]}.",
        limit=found.name,
    )


def shortage_error(found: Shortage) -> ApiError:
    """Return the refusal of a request for which there is no room now."""
    words = _WORDS[found.name]
    if found.kind == "quota":
        left = "tomorrow" if found.name == "day" else "next month"
        return QuotaError(
            f"This key's quota of {found.limit} {words} does not allow this request; it begins anew {left} (UTC).",
            limit=found.name,
        )
    return RateLimitError(
        f"This key's limit of {found.limit} {words} is reached. Try again in {_duration(found.wait_ms).decode()}.",
        kind=found.kind,
        limit=found.name,
        retry_after_s=found.wait_ms / 1000,
    )
