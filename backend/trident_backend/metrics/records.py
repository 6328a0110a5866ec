"""What happened, in numbers, for whoever measures: one record a step, one a sequence.

Owns their meaning. Never adds up and never publishes.
"""

from __future__ import annotations

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
        gaps: inter-token latencies, seconds and how many tokens each stands for. The tokens that a sequence gets from
            one step share the time since its last.
    """

    seconds: float
    num_tokens: int
    num_context_tokens: int
    num_preempted: int
    gaps: tuple[tuple[float, int], ...]


class RequestRecord(NamedTuple):
    """One request that has ended; of a request for several answers, one of these.

    Args:
        finish_reason: how.
        num_input_tokens: of the prompt.
        num_output_tokens: generated.
        num_cached_tokens: of the prompt, found in the KV cache.
        num_preemptions: how often it lost its room.
        num_draft_tokens: guessed for it.
        num_accepted_tokens: of these, right.
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
    """Of a step that computed something."""
    gaps = tuple(
        (advance.seconds / advance.num_tokens, advance.num_tokens)
        for advance in result.advances
        if advance.seconds is not None
    )
    return StepRecord(
        result.seconds, result.output.num_tokens, result.output.num_context_tokens, len(result.output.preempted), gaps
    )


def refusal(num_input_tokens: int = 0) -> RequestRecord:
    """Of a request that never became a sequence of the core."""
    return RequestRecord(FinishReason.REFUSED, num_input_tokens, 0, 0, 0, 0, 0, None, None, 0.0)


def request_record(sequence: Sequence, now: float) -> RequestRecord:
    """Of a sequence that has ended."""
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
