"""Appends the tokens and scores of a step to its sequences, and says whether a sequence ends.

Owns the order of the reasons to end: an end id before a stop id before a stop string before a finished guide before
`max_tokens`, of which 0 ends a sequence once its prompt is computed. Never chooses a token, never frees anything.
"""

from __future__ import annotations

from trident_backend.sequences.choices import NO_TOKEN, NOT_FINITE, Choices
from trident_backend.sequences.sampling_params import BANNING_BIAS
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import Advance, ScheduledChunk, new_tuple
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import EngineError, InternalError, InvalidGuideError, RequestError, TridentError


def score(chunk: ScheduledChunk, choices: Choices, first_row: int) -> None:
    """Append the log probabilities of the prompt's tokens that a chunk has scored.

    Args:
        chunk: with scored rows.
        choices: of the whole step.
        first_row: the first of the chunk's scored rows.
    """
    log_probs = (choices.log_probs[row] for row in range(first_row, first_row + chunk.num_scored))
    chunk.sequence.prompt_log_probs.extend(log_probs)


def accept(
    chunk: ScheduledChunk, choices: Choices, first_row: int
) -> tuple[int, FinishReason | None, TridentError | None]:
    """Append the chosen tokens, as long as the draft tokens before them are accepted and nothing ends the text.

    A guide and stop strings are the request's own and are followed by third-party libraries: whatever they raise ends
    this sequence and no other.

    Args:
        chunk: one that completes.
        choices: of the whole step.
        first_row: the row that chose the next token; one for each draft token follows.

    Returns:
        how many tokens were appended; why the sequence ends: ERROR if there was no token to choose, or if its guide or
        stop strings failed, None if it goes on; and what its client is told where that is ERROR.
    """
    sequence, _, _, draft_ids, _ = chunk
    if not sequence.max_tokens:
        return 0, last_look(sequence, FinishReason.LENGTH), None
    guide, token_ids, log_probs = sequence.guide, sequence.token_ids, choices.log_probs
    if guide is not None:
        try:
            if guide.is_finished:
                # It was found out only while the mask for what would follow was filled.
                return 0, last_look(sequence, FinishReason.STOP), None
        except BaseException as cause:
            return 0, FinishReason.ERROR, _not_followed(cause)
    reason: FinishReason | None = None
    error: TridentError | None = None
    num_tokens = num_accepted = 0
    while True:
        token_id = choices.token_ids[first_row + num_tokens]
        if token_id < 0:
            if num_tokens and token_id == NO_TOKEN and guide is not None:
                # A draft token was accepted after which the mask was not filled: the next step looks again.
                sequence.num_computed_tokens -= 1
            else:
                reason, error = FinishReason.ERROR, _no_token(sequence, token_id)
            break
        token_ids.append(token_id)
        if log_probs and (row_log_probs := log_probs.get(first_row + num_tokens)) is not None:
            sequence.log_probs.append(row_log_probs)
        num_tokens += 1
        try:
            reason = _reason_to_end(sequence, token_id)
        except BaseException as cause:  # a panic of a library written in Rust is not an Exception
            reason, error = FinishReason.ERROR, _not_followed(cause)
        if reason is not None or num_tokens > len(draft_ids) or draft_ids[num_tokens - 1] != token_id:
            break
        num_accepted += 1
        sequence.num_computed_tokens += 1
    if draft_ids and sequence.drafter is not None:
        sequence.drafter.observe(len(draft_ids), num_accepted)
        sequence.num_draft_tokens += len(draft_ids)
        sequence.num_accepted_tokens += num_accepted
    return num_tokens, reason, error


def advance(sequence: Sequence, num_tokens: int, now: float) -> Advance:
    """Note that a sequence's newest tokens came now; return how many they are and how long they took."""
    last, sequence.last_token_at = sequence.last_token_at, now
    if last is None:
        sequence.first_token_at = now
        return Advance(sequence, num_tokens, None)
    return new_tuple(Advance, (sequence, num_tokens, now - last))


def _reason_to_end(sequence: Sequence, token_id: int) -> FinishReason | None:
    """Show the token just appended to the guide and the stop strings; return why the text ends, if it does."""
    if token_id in sequence.end_ids or token_id in sequence.stop_ids:
        sequence.num_hidden_tail_tokens = 0 if sequence.include_stop else 1
        if token_id in sequence.end_ids:
            return last_look(sequence, FinishReason.EOS)
        word = sequence.stop_id_words.get(token_id)
        stop_reason, ending_id = (str(token_id), None) if word is None else (word, token_id)
        return last_look(sequence, FinishReason.STOP, stop_reason, ending_id)
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


def last_look(
    sequence: Sequence, reason: FinishReason, stop_reason: str = "", ending_id: int | None = None
) -> FinishReason:
    """Flush the stop strings at the end of the output; return why it ends.

    A stop string that was held back and is found now takes precedence over the reason given.

    Args:
        sequence: whose output ends.
        reason: why, without a stop string.
        stop_reason: the stop id or its text, if that is the reason.
        ending_id: the token that ended the text, if the request names it by a stop word: a longer one may end with it.
    """
    stop_strings, word = sequence.stop_strings, None
    if stop_strings is not None:
        word = stop_strings.finish() if ending_id is None else stop_strings.finish(ending_id)
    sequence.stop_reason = stop_reason if word is None else word
    return reason if word is None else FinishReason.STOP


def stopped(sequence: Sequence) -> tuple[FinishReason, TridentError | None]:
    """Return why a sequence ends that is asked to stop, and what its client is told if its stop strings fail then."""
    try:
        return last_look(sequence, FinishReason.CANCELLED), None
    except BaseException as cause:
        return FinishReason.ERROR, _not_followed(cause)


def _no_token(sequence: Sequence, token_id: int) -> TridentError:
    """Return the error of a sequence for which no token can be chosen: the engine's fault, or the request's."""
    guide, sampling = sequence.guide, sequence.sampling
    if guide is not None and guide.failure is not None:
        return guide.failure
    bans = [tensors.BAD_WORDS.name] if sampling.bad_words else []
    if any(bias <= BANNING_BIAS for _, bias in sampling.logit_bias):
        bans.append(tensors.LOGIT_BIAS.name)
    if sampling.min_tokens > sequence.num_output_tokens and (sequence.end_ids or sequence.stop_ids):
        bans.append(tensors.MIN_TOKENS.name)
    if token_id == NOT_FINITE or (guide is None and not bans):
        return EngineError("no token can be chosen: the logits are not finite numbers")
    where = f"token {sequence.num_output_tokens + 1} of the output"
    if guide is None:
        return RequestError(bans[0], f"bans every token at {where}")
    if not bans:
        return InvalidGuideError(tensors.GUIDE.name, f"allows no token at {where}")
    return InvalidGuideError(tensors.GUIDE.name, f"allows no token at {where} that {' and '.join(bans)} leave")


def _not_followed(cause: BaseException) -> InternalError:
    error = InternalError("this request's guide or stop strings failed on its output; the server's log says why")
    error.__cause__ = cause
    return error
