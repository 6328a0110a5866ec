"""Log probabilities as clients read them.

Owns the two forms: that of chat, and the older one of completions. Never leaves out a token, and never shows U+FFFD for
a part of a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from msgspec import Struct

from trident_gateway.api.rows import ScoredToken, TokenScores

#: What stands for the logarithm of 0, which JSON cannot write.
_LEAST = -9999.0


class TopLogprob(Struct):
    """One of the likeliest tokens."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Struct):
    """A token of the answer."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob]


def chat_logprobs(scores: Sequence[TokenScores]) -> list[TokenLogprob]:
    """Return the form of chat."""
    return [
        TokenLogprob(
            _shown(entry.chosen.token, ""),
            list(entry.chosen.token),
            _finite(entry.chosen),
            [TopLogprob(_shown(top.token, ""), list(top.token), _finite(top)) for top in entry.top],
        )
        for entry in scores
    ]


class CompletionLogprobs(Struct):
    """The form of completions: lists of equal length, one element for each token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None


class CompletionScores:
    """Puts the tokens of one answer into the form of completions, as they come.

    Args:
        num_top: how many of the likeliest tokens are shown; the token itself is always among them.
    """

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, scores: Sequence[TokenScores], *, is_prompt: bool = False) -> CompletionLogprobs:
        """Return the next tokens.

        Args:
            scores: of the tokens.
            is_prompt: they begin the prompt, so that nothing is known about the first one.
        """
        part = CompletionLogprobs([], [], [], [] if self._num_top else None)
        for at, entry in enumerate(scores):
            is_first = is_prompt and at == 0
            token = _shown(entry.chosen.token, "bytes:")
            part.text_offset.append(self._offset)
            if entry.chosen.is_text:
                self._offset += len(self._decoder.decode(entry.chosen.token))
            part.tokens.append(token)
            part.token_logprobs.append(None if is_first else _finite(entry.chosen))
            if part.top_logprobs is not None:
                part.top_logprobs.append(None if is_first else self._top(entry, token))
        return part

    def _top(self, entry: TokenScores, token: str) -> dict[str, float]:
        top: dict[str, float] = {}
        for candidate in entry.top[: self._num_top]:
            top.setdefault(_shown(candidate.token, "bytes:"), _finite(candidate))
        top.setdefault(token, _finite(entry.chosen))
        return top


def join_logprobs(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """Return parts of one answer as a whole."""
    whole = CompletionLogprobs([], [], [], [] if parts and parts[0].top_logprobs is not None else None)
    for part in parts:
        whole.text_offset += part.text_offset
        whole.token_logprobs += part.token_logprobs
        whole.tokens += part.tokens
        if whole.top_logprobs is not None:
            whole.top_logprobs += part.top_logprobs or []
    return whole


def _finite(scored: ScoredToken) -> float:
    return max(scored.log_prob, _LEAST)


def _shown(token: bytes, prefix: str) -> str:
    """Return a token's text, or one with escapes where it is a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return prefix + token.decode(errors="backslashreplace")
