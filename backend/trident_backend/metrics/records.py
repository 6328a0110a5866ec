"""Measurements of steps and requests, as plain values: one record for each.

Owns their meaning. Never adds up and never publishes.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import StepResult


class StepRecord(NamedTuple):
    """One step of the engine.

    Args:
        seconds: how long it took.
        num_tokens: tokens it computed.
        num_context_tokens: of these, tokens of prompts, and of outputs that were computed again.
        num_preempted: sequences that lost their room for it.
        gaps: inter-token latencies, each in seconds and with the number of tokens that came after it. The tokens that a
            sequence gets from one step share the time since its last.
    """

    seconds: float
    num_tokens: int
    num_context_tokens: int
    num_preempted: int
    gaps: tuple[tuple[float, int], ...]


class RequestRecord(NamedTuple):
    """One request that has ended; a request for several answers has one record for each.

    Args:
        finish_reason: why it ended.
        num_input_tokens: of the prompt.
        num_output_tokens: generated.
        num_cached_tokens: of the prompt, found in the KV cache.
        num_preemptions: how often it lost its room in the KV cache.
        num_draft_tokens: draft tokens computed for it.
        num_accepted_tokens: how many of these were accepted.
        queue_seconds: from its arrival until it first ran; None if it never did.
        first_token_seconds: from its arrival until its first token; None if it got none.
        latency_seconds: from its arrival until its end.
    """

    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_draft_tokens: int
    num_accepted_tokens: int
    queue_seconds: float | None
    first_token_seconds: float | None
    latency_seconds: float


def step_record(result: StepResult) -> StepRecord:
    """Return the record of a step that computed something."""
    gaps = Counter[float]()
    for _, num_tokens, seconds in result.advances:
        if seconds is not None:
            gaps[seconds / num_tokens] += num_tokens
    return StepRecord(
        result.seconds,
        result.output.num_tokens,
        result.output.num_context_tokens,
        len(result.output.preempted),
        tuple(gaps.items()),
    )


def refusal(num_input_tokens: int = 0) -> RequestRecord:
    """Return the record of a request that never became a sequence of the core."""
    return RequestRecord(FinishReason.REFUSED, num_input_tokens, 0, 0, 0, 0, 0, None, None, 0.0)


def request_record(sequence: Sequence, now: float) -> RequestRecord:
    """Return the record of a sequence that has ended."""
    assert sequence.finish_reason is not None
    arrived = sequence.arrived_at
    return RequestRecord(
        finish_reason=sequence.finish_reason,
        num_input_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sequence.num_output_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        num_preemptions=sequence.num_preemptions,
        num_draft_tokens=sequence.num_draft_tokens,
        num_accepted_tokens=sequence.num_accepted_tokens,
        queue_seconds=None if sequence.first_scheduled_at is None else sequence.first_scheduled_at - arrived,
        first_token_seconds=None if sequence.first_token_at is None else sequence.first_token_at - arrived,
        latency_seconds=now - arrived,
    )
