"""Doubles of what follows a growing output: stop strings, a guide, and a sampler that scores; and what they should do.

Token ids are digits, and an output's text is these; 4 is a character that is incomplete until another follows.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trident_backend.engine.host_logits import HostLogits
from trident_backend.sequences.choices import NO_TOKEN, Choices, TokenLogProbs
from trident_backend.sequences.guide import MASK_WORD, Masks, RowMasks
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import Row

INCOMPLETE = 4


@dataclass
class Words:
    """Stop strings that look at everything again with each token."""

    words: tuple[str, ...]
    seen: list[int] = field(default_factory=list)
    is_closed: bool = False

    @property
    def num_safe_tokens(self) -> int:
        return len(self.seen) if self.is_closed else 0

    @property
    def num_characters(self) -> int:
        return min(self._text(len(self.seen)).find(word) for word in self.words)

    def append(self, token_id: int) -> str | None:
        assert not self.is_closed, "a token after the end"
        self.seen.append(token_id)
        word = self._found(len(self.seen) - (token_id == INCOMPLETE))
        self.is_closed = word is not None
        return word

    def finish(self) -> str | None:
        assert not self.is_closed, "ended twice"
        self.is_closed = True
        return self._found(len(self.seen))

    def text_end(self, num_tokens: int) -> int:
        return num_tokens

    def _text(self, length: int) -> str:
        return "".join(map(str, self.seen[:length]))

    def _found(self, length: int) -> str | None:
        text = self._text(length)
        return next((word for word in self.words if word in text), None)


@dataclass
class Grammar:
    """No token may follow itself; after `length` tokens the output is complete."""

    length: int
    seen: list[int] = field(default_factory=list)

    failure = None

    @property
    def is_finished(self) -> bool:
        return len(self.seen) == self.length

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        masks[...] = np.iinfo(np.uint32).max
        for row, last in zip(masks, [*self.seen[-1:], *draft_ids] if self.seen else [None, *draft_ids], strict=True):
            if last is not None:
                row[last // MASK_WORD] &= ~np.uint32(1 << last % MASK_WORD)

    def advance(self, token_id: int) -> None:
        assert not self.is_finished
        assert self.seen[-1:] != [token_id], "a token that the grammar does not allow"
        self.seen.append(token_id)


class ScoringSampler:
    """Chooses as another sampler does, obeys guides, scores, and finds nothing to choose where it is told to.

    A log probability is minus the token that the engine itself would choose, so that it tells from which context it is.

    Args:
        inner: chooses; what is passed on to it says nothing of guides.
        vocab_size: width of a row.
        dead_ends: by sequence id, the place for which there is no token.
    """

    def __init__(self, inner: Any, vocab_size: int) -> None:
        self.inner = inner
        self.vocab_size = vocab_size
        self.dead_ends: dict[int, int] = {}

    def choose(self, logits: HostLogits, rows: Rows[Row], masks: RowMasks | None = None) -> Choices:
        likeliest = logits.array.argmax(axis=1).tolist()
        return self.judge(rows, likeliest, list(self.inner.choose(logits, rows).token_ids))

    def judge(self, rows: Rows[Row], likeliest: list[int], token_ids: list[int]) -> Choices:
        """What becomes of the tokens that were chosen, where the engine itself would choose others."""
        log_probs = {}
        for index, (sequence, place, draft_ids) in enumerate(rows):
            if place < len(sequence.token_ids):
                token_ids[index] = sequence.token_ids[place]
            else:
                token_ids[index] = self._allowed(sequence, draft_ids, token_ids[index])
                if self.dead_ends.get(sequence.sequence_id) == place:
                    token_ids[index] = NO_TOKEN
            params = sequence.sampling
            if params.prompt_log_probs if place < sequence.num_prompt_tokens else params.log_probs:
                log_probs[index] = TokenLogProbs(-float(likeliest[index]))
        return Choices(token_ids, log_probs)

    def _allowed(self, sequence: Sequence, draft_ids: tuple[int, ...], token_id: int) -> int:
        """The first token from the chosen one on that the guide allows."""
        if sequence.guide is None:
            return token_id
        masks = np.zeros((1 + len(draft_ids), -(-self.vocab_size // MASK_WORD)), np.uint32)
        sequence.guide.fill(draft_ids, masks)
        allowed = np.unpackbits(masks[-1].view(np.uint8), bitorder="little")[: self.vocab_size]
        return next(one % self.vocab_size for one in range(token_id, token_id + 9) if allowed[one % self.vocab_size])


@dataclass(frozen=True)
class Alone:
    """What becomes of a request that has the engine to itself."""

    output: list[int]
    reason: FinishReason
    stop_reason: str
    num_hidden_tail_tokens: int
    log_probs: list[TokenLogProbs]
    prompt_log_probs: list[TokenLogProbs]


def alone(sequence: Sequence, sampler: ScoringSampler, next_logits: Any) -> Alone:
    """Token by token, each judged from the whole output so far.

    Args:
        sequence: whose prompt and options count; nothing else of it.
        sampler: chooses.
        next_logits: the engine's logits after a context of token ids, `[1, vocab_size]`.
    """
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    copied = replace(sequence, token_ids=prompt, token_counts=None, log_probs=[], prompt_log_probs=[])
    guide: Any = sequence.guide
    length: int | None = None if guide is None else guide.length
    scores = [
        TokenLogProbs(-float(next_logits(prompt[:place]).array.argmax()))
        for place in range(1, len(prompt) if sequence.sampling.prompt_log_probs else 1)
    ]
    log_probs: list[TokenLogProbs] = []
    output: list[int] = []
    ending = None if sequence.max_tokens else (FinishReason.LENGTH, "", False)
    while ending is None:
        copied.token_ids = prompt + output
        copied.guide = Grammar(length, list(output)) if length is not None else None
        logits, rows = next_logits(copied.token_ids), [Row(copied, len(copied.token_ids))]
        likeliest = [int(logits.array.argmax())]
        chosen = likeliest if copied.sampling.temperature == 0 else sampler.inner.choose(logits, rows).token_ids
        choices = sampler.judge(rows, likeliest, list(chosen))
        (token_id,) = choices.token_ids
        if token_id == NO_TOKEN:
            ending = FinishReason.ERROR, "", False
        else:
            log_probs.extend(choices.log_probs.values())
            output.append(token_id)
            ending = _ending(sequence, output, length)
    reason, stop_reason, is_silent = ending
    return Alone(output, reason, stop_reason, int(is_silent and not sequence.include_stop), log_probs, scores)


def _ending(sequence: Sequence, output: list[int], length: int | None) -> tuple[FinishReason, str, bool] | None:
    """Why an output ends with its last token: the reason, the stop string or stop id, and whether that is no text."""
    follower: Any = sequence.stop_strings
    words: tuple[str, ...] = () if follower is None else follower.words
    *before, last = output
    is_end_id, is_stop_id = last in sequence.end_ids, last in sequence.stop_ids
    is_last = len(output) in {sequence.max_tokens, length}
    text = before if is_end_id or is_stop_id or (last == INCOMPLETE and not is_last) else output
    found = [word for word in words if word in "".join(map(str, text))]
    if found:
        return FinishReason.STOP, found[0], is_end_id or is_stop_id
    if is_end_id or is_stop_id:
        return (FinishReason.EOS, "", True) if is_end_id else (FinishReason.STOP, str(last), True)
    if is_last:
        return FinishReason.STOP if len(output) == length else FinishReason.LENGTH, "", False
    return None
