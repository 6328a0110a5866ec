"""Token sequences that must not come about, in the form in which tensorrtllm_backend's clients send them.

Owns that form and its bounds. Never bans a token.
"""

from __future__ import annotations

from itertools import pairwise

from trident_ensemble.contract.errors import RequestError

MAX_NUM_BAD_TOKENS = 16384


def parse_bad_words(field: str, values: list[int], vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Return the words' token ids.

    Args:
        field: what the client calls it, for errors.
        values: `[2, n]`, flat: the ids of all words after one another; then where each word ends among them, rising.
            Both rows may be filled up, the second one with -1.
        vocab_size: ids are below it.

    Raises:
        RequestError: it has another form, or an id or end is out of bounds.
    """
    if len(values) > 2 * MAX_NUM_BAD_TOKENS:
        raise RequestError(field, f"{len(values) // 2} tokens are too many: at most {MAX_NUM_BAD_TOKENS}")
    if len(values) % 2:
        raise RequestError(field, "must have the shape [2, n]")
    num_tokens = len(values) // 2
    token_ids, ends = values[:num_tokens], values[num_tokens:]
    while ends and ends[-1] == -1:
        ends.pop()
    for start, end in pairwise([0, *ends]):
        if not start < end <= num_tokens:
            raise RequestError(field, f"the ends of words must rise from 1 to {num_tokens} at most, then -1; not {end}")
    words = tuple(tuple(token_ids[start:end]) for start, end in pairwise([0, *ends]))
    for token_id in token_ids[: ends[-1] if ends else 0]:
        if not 0 <= token_id < vocab_size:
            raise RequestError(field, f"every id must be from 0 to {vocab_size - 1}, not {token_id}")
    return words
