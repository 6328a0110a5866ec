"""The client's record of one request: when its responses came, and what the server said about it.

Owns the times of a stream while it runs, and the record that it leaves. All times are seconds of one monotonic clock.
Never aggregates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: The error of a request that had not been answered in full when the grace of its stage was over.
UNFINISHED = "unfinished: no end within the grace"
_MAX_KIND_WORDS = 16
_CODES = re.compile(r"(\[\w+\]\s*)+")


@dataclass(frozen=True)
class ClientRequestRecord:
    """A request that has ended, well or not.

    Args:
        scheduled_at: when it should have been sent; every latency counts from here.
        sent_at: when it was sent.
        chunk_times: arrival of each response that carried tokens.
        chunk_tokens: how many tokens each of these carried; None where the protocol does not say.
        num_input_tokens: tokens of the prompt as the server counts them; None if it does not say.
        num_output_tokens: tokens of the output as the server counts them; None if it does not say.
        finish_reason: the reason as the server spells it.
        error: what went wrong; empty if nothing did.
    """

    scheduled_at: float
    sent_at: float
    chunk_times: tuple[float, ...]
    chunk_tokens: tuple[int, ...] | None
    num_input_tokens: int | None
    num_output_tokens: int | None
    finish_reason: str
    error: str

    @property
    def time_to_first_token(self) -> float:
        """Seconds to the first response with tokens."""
        return self.chunk_times[0] - self.scheduled_at

    @property
    def request_latency(self) -> float:
        """Seconds to the last response with tokens."""
        return self.chunk_times[-1] - self.scheduled_at

    @property
    def inter_token_latency(self) -> float | None:
        """Seconds per token after the first; None for an output of one token, or of an unknown number."""
        if self.num_output_tokens is None or self.num_output_tokens < 2:
            return None
        return (self.chunk_times[-1] - self.chunk_times[0]) / (self.num_output_tokens - 1)

    @property
    def inter_chunk_latencies(self) -> list[float]:
        """Seconds between successive responses."""
        return [later - earlier for earlier, later in zip(self.chunk_times, self.chunk_times[1:], strict=False)]

    def tokens_of_chunks(self) -> list[float]:
        """Return the tokens of each response; where the protocol does not say, the total is distributed evenly."""
        if self.chunk_tokens is not None:
            return [float(count) for count in self.chunk_tokens]
        if self.num_output_tokens is None or not self.chunk_times:
            return [0.0] * len(self.chunk_times)
        return [self.num_output_tokens / len(self.chunk_times)] * len(self.chunk_times)


@dataclass(eq=False)
class ClientStream:
    """A request while it runs; its client fills in what it receives.

    Args:
        scheduled_at: when it should have been sent.
        sent_at: when it was sent.
    """

    scheduled_at: float
    sent_at: float
    chunk_times: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    finish_reason: str = ""

    def received(self, now: float, num_tokens: int | None) -> None:
        """Note a response with tokens; `num_tokens` is None where the protocol does not say how many."""
        self.chunk_times.append(now)
        if num_tokens is not None:
            self.chunk_tokens.append(num_tokens)

    def record(self, error: str) -> ClientRequestRecord:
        """Return the record of the request, which has ended."""
        counted = len(self.chunk_tokens) == len(self.chunk_times)
        total = self.num_output_tokens
        if total is None and counted:
            total = sum(self.chunk_tokens)
        return ClientRequestRecord(
            scheduled_at=self.scheduled_at,
            sent_at=self.sent_at,
            chunk_times=tuple(self.chunk_times),
            chunk_tokens=tuple(self.chunk_tokens) if counted else None,
            num_input_tokens=self.num_input_tokens,
            num_output_tokens=total,
            finish_reason=self.finish_reason,
            error=error,
        )


def error_kind(message: str) -> str:
    """Return the kind by which an error is counted: its codes in brackets and its first words.

    Every number in the words becomes N, so that equal errors are counted together.
    """
    match = _CODES.match(message)
    codes = match.group() if match else ""
    words = (codes + re.sub(r"\d+(\.\d+)?", "N", message[len(codes) :])).split()
    return " ".join(words[:_MAX_KIND_WORDS]) or "(no message)"
