"""Takes what a step has chosen and scored into its sequences, and says whether it ends one.

Owns the order of the reasons to end: an end id before a stop id before a stop string before a finished guide before
`max_tokens`. Never chooses a token, never frees anything.
"""

from __future__ import annotations

from typing import NamedTuple

from trident_backend.sampling.choices import NO_TOKEN, Choices
from trident_backend.sequence import FinishReason, Sequence
from trident_backend.steps import Advance, ScheduledChunk
from trident_ensemble.errors import EngineError, InternalError, TridentError


class Accepted(NamedTuple):
    """What a sequence got from a step.

    Args:
        num_tokens: how many tokens were appended.
        reason: why it ends: ERROR if there was no token to choose, or if what follows its text failed; None if it goes
            on.
        error: what its client is told where the reason is ERROR.
    """

    num_tokens: int
    reason: FinishReason | None
    error: TridentError | None = None


def score(chunk: ScheduledChunk, choices: Choices, first_row: int) -> None:
    """Note the log probabilities of the prompt's tokens that a chunk has scored, from `first_row` on."""
    log_probs = (choices.log_probs[row] for row in range(first_row, first_row + chunk.num_scored))
    chunk.sequence.prompt_log_probs.extend(log_probs)


def accept(chunk: ScheduledChunk, choices: Choices, first_row: int) -> Accepted:
    """Append what was chosen as long as the guesses before it were right and nothing ends the text.

    A guide and stop strings are the request's own, and are followed by other people's libraries: whatever they raise
    ends this sequence and no other.

    Args:
        chunk: one that completes.
        choices: of the whole step.
        first_row: the row that chose the next token; one for each guess follows.
    """
    sequence, draft_ids, log_probs = chunk.sequence, chunk.draft_ids, choices.log_probs
    reason, num_tokens, num_accepted = None, 0, 0
    error: TridentError | None = None
    for row in range(first_row, first_row + 1 + len(draft_ids)):
        token_id = choices.token_ids[row]
        if token_id == NO_TOKEN:
            reason, error = FinishReason.ERROR, _no_token()
            break
        sequence.token_ids.append(token_id)
        num_tokens += 1
        if log_probs and row in log_probs:
            sequence.log_probs.append(log_probs[row])
        try:
            reason = _reason_to_end(sequence, token_id)
        except BaseException as cause:  # a panic of a library written in Rust is no Exception
            reason, error = FinishReason.ERROR, _not_followed(cause)
        if reason is not None or num_tokens > len(draft_ids) or draft_ids[num_tokens - 1] != token_id:
            break
        num_accepted += 1
        sequence.num_computed_tokens += 1
    lookup = sequence.lookup
    if lookup is not None and draft_ids:
        lookup.judged(len(draft_ids), num_accepted)
        sequence.num_draft_tokens += len(draft_ids)
        sequence.num_accepted_tokens += num_accepted
    return Accepted(num_tokens, reason, error)


def advance(sequence: Sequence, num_tokens: int, now: float) -> Advance:
    """Note when its newest tokens came."""
    waited = None if sequence.last_token_at is None else now - sequence.last_token_at
    sequence.last_token_at = now
    if waited is None:
        sequence.first_token_at = now
    return Advance(sequence, num_tokens, waited)


def _reason_to_end(sequence: Sequence, token_id: int) -> FinishReason | None:
    """Show the token just appended to whoever follows the text."""
    if token_id in sequence.end_ids or token_id in sequence.stop_ids:
        sequence.num_silent_tokens = 0 if sequence.include_stop else 1
        if token_id in sequence.end_ids:
            return last_look(sequence, FinishReason.EOS)
        return last_look(sequence, FinishReason.STOP, str(token_id))
    guide, stop_strings = sequence.guide, sequence.stop_strings
    if guide is not None:
        guide.advance(token_id)
    if stop_strings is not None and (word := stop_strings.append(token_id)) is not None:
        sequence.stop_reason = word
        return FinishReason.STOP
    if guide is not None and guide.is_finished:
        return last_look(sequence, FinishReason.STOP)
    if len(sequence.token_ids) - sequence.num_prompt_tokens == sequence.max_tokens:
        return last_look(sequence, FinishReason.LENGTH)
    return None


def last_look(sequence: Sequence, reason: FinishReason, stop_reason: str = "") -> FinishReason:
    """Return why a text ends of which no token comes any more.

    That is a stop string, if one was in what had been held back; else the given reason.
    """
    word = None if sequence.stop_strings is None else sequence.stop_strings.finish()
    sequence.stop_reason = stop_reason if word is None else word
    return reason if word is None else FinishReason.STOP


def stopped(sequence: Sequence) -> tuple[FinishReason, TridentError | None]:
    """Return why a sequence ends that is asked to stop, and what its client is told if its stop strings fail then."""
    try:
        return last_look(sequence, FinishReason.CANCELLED), None
    except BaseException as cause:
        return FinishReason.ERROR, _not_followed(cause)


def _no_token() -> EngineError:
    return EngineError("no token can be chosen: every one is banned, or the logits are no numbers")


def _not_followed(cause: BaseException) -> InternalError:
    error = InternalError("this request's guide or stop strings failed on its output; the server's log says why")
    error.__cause__ = cause
    return error
