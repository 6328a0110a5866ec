"""One response of the ensemble, taken apart into its sequences.

Owns how flat tensors become the parts of each answer. Never knows what a client is shown of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trident_ensemble.contract.tensors import NO_TEXT_MARK
from trident_gateway.upstream.events import GenerateEvent, as_list, as_rows


@dataclass(frozen=True)
class ScoredToken:
    """A token with the logarithm of its probability.

    Args:
        token: its bytes.
        log_prob: the logarithm.
        is_text: the text has it; special tokens are left out there.
    """

    token: bytes
    log_prob: float
    is_text: bool = True


@dataclass(frozen=True)
class TokenScores:
    """A token of the text, and the likeliest ones at its place, the most likely first."""

    chosen: ScoredToken
    top: tuple[ScoredToken, ...] = ()


@dataclass(slots=True)
class Row:
    """The part of one sequence that a response has.

    Args:
        index: of the sequence.
        text: that the response adds.
        token_ids: likewise; with echo, the first ones are the prompt's.
        markers: characters of the text before each marker, and its token id.
        scores: of the output's tokens, where they were asked for.
        finish_reason: the core's; "" if the sequence goes on.
        num_output_tokens: of the whole sequence, where it has ended.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    markers: Sequence[tuple[int, int]] = ()
    scores: Sequence[TokenScores] = field(default=())
    finish_reason: str = ""
    num_output_tokens: int | None = None


def rows_of(event: GenerateEvent) -> list[Row]:
    """Return the sequences of a response.

    Raises:
        MalformedEventError: its tensors do not fit together.
    """
    text = event.text_output
    if isinstance(text, str) and event.output_log_probs is None and event.markers is None:
        index, reason = event.sequence_index, event.finish_reason  # by far the most frequent case
        if not isinstance(index, list) and not isinstance(reason, list):
            count = event.num_output_tokens
            return [
                Row(
                    index or 0, text, as_list(event.output_ids), (), (), reason or "",
                    count[0] if isinstance(count, list) else count,
                )
            ]  # fmt: skip
    return _several(event)


def _several(event: GenerateEvent) -> list[Row]:
    texts = as_list(event.text_output)
    num_rows = len(texts)
    indices = as_list(event.sequence_index) or list(range(num_rows))
    reasons, counts = as_list(event.finish_reason), as_list(event.num_output_tokens)
    lengths = as_list(event.sequence_length)
    ids = as_rows(event.output_ids, num_rows)
    scores = _scores(event, counts, num_rows)
    markers: list[list[int]] = as_rows(list(event.markers or ()), len(event.markers or ()) // 3)
    return [
        Row(
            indices[row],
            texts[row],
            ids[row][: lengths[row]] if row < len(lengths) and num_rows > 1 else ids[row],
            [(offset, token_id) for at, offset, token_id in markers if at == row],
            scores[row],
            reasons[row] if row < len(reasons) else "",
            counts[row] if row < len(counts) else None,
        )
        for row in range(num_rows)
    ]


def _scores(event: GenerateEvent, counts: Sequence[int], num_rows: int) -> list[Sequence[TokenScores]]:
    log_probs = as_rows(event.output_log_probs, num_rows)
    if num_rows > 1:  # only an answer that does not stream has several, and so it has all their tokens
        log_probs = [row[:count] for row, count in zip(log_probs, counts, strict=False)]
    tokens = as_rows(event.output_token_bytes, num_rows)
    tops = _tops(event.top_log_probs, event.top_token_bytes, sum(map(len, log_probs)))
    found: list[Sequence[TokenScores]] = []
    position = 0
    for row_log_probs, row_tokens in zip(log_probs, tokens, strict=False):
        chosen = [_scored(token, value) for token, value in zip(row_tokens, row_log_probs, strict=False)]
        found.append([TokenScores(token, tops[position + at] if tops else ()) for at, token in enumerate(chosen)])
        position += len(row_log_probs)
    return found + [()] * (num_rows - len(found))


def prompt_scores(event: GenerateEvent) -> list[TokenScores]:
    """Return the prompt's tokens with their scores, where they were asked for; nothing comes before the first one."""
    tokens = as_list(event.prompt_token_bytes)
    log_probs = as_list(event.prompt_log_probs)
    tops = _tops(event.prompt_top_log_probs, event.prompt_top_token_bytes, max(0, len(tokens) - 1))
    return [
        TokenScores(_scored(token, log_prob), tops[at - 1] if tops and at else ())
        for at, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=False))
    ]


def _tops(
    values: float | list[float] | None, tokens: str | list[str] | None, num_places: int
) -> list[tuple[ScoredToken, ...]]:
    if values is None or not num_places:
        return []
    return [
        tuple(_scored(token, value) for token, value in zip(place_tokens, place, strict=True))
        for place_tokens, place in zip(as_rows(tokens, num_places), as_rows(values, num_places), strict=True)
    ]


def _scored(token: str, log_prob: float) -> ScoredToken:
    return ScoredToken(bytes.fromhex(token.removeprefix(NO_TEXT_MARK)), log_prob, not token.startswith(NO_TEXT_MARK))
