"""The truncation of prompts to a length that the request asks for.

Owns what a request may ask for, and which ids are removed. Never cuts a prompt whose request does not ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.prompt_request import PromptRequest

#: The value that asks for as many tokens as the engine holds beside the answer.
LONGEST = -1


class TruncationSide(str, Enum):
    """The side on which a prompt is cut."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True)
class Truncation:
    """The length to which a prompt is cut.

    Args:
        num_tokens: how many tokens are left at most, including special ones.
        side: the side on which it is cut.
    """

    num_tokens: int
    side: TruncationSide

    def cut(self, token_ids: list[int], is_added: Sequence[int] | None = None) -> list[int]:
        """Return the ids that are left of a prompt, as transformers' tokenizers truncate.

        Args:
            token_ids: the whole prompt.
            is_added: for each id, whether the tokenizer added it to the text; added ids are kept. None if none was
                added.

        Raises:
            RequestError: nothing of the text itself would be left.
        """
        if len(token_ids) <= self.num_tokens:
            return token_ids
        of_text = [index for index in range(len(token_ids)) if is_added is None or not is_added[index]]
        num_added = len(token_ids) - len(of_text)
        num_left = self.num_tokens - num_added
        if num_left < 1:
            problem = f"{self.num_tokens} leaves no room beside the special tokens; send at least {num_added + 1}"
            raise RequestError(tensors.TRUNCATE_PROMPT_TOKENS.name, problem)
        removed = set(of_text[:-num_left] if self.side is TruncationSide.LEFT else of_text[num_left:])
        return [token_id for index, token_id in enumerate(token_ids) if index not in removed]


def parse_truncation(request: PromptRequest, max_seq_len: int) -> Truncation | None:
    """Read which truncation a request asks for; None if it asks for none.

    Args:
        request: the request; its `max_tokens` is reserved where it asks for the longest possible prompt.
        max_seq_len: tokens of prompt and answer together that the engine holds.

    Raises:
        RequestError: a field is wrong; names it.
    """
    num_tokens = request.truncate_prompt_tokens
    if num_tokens is None:
        if request.truncation_side is not None:
            problem = f"needs {tensors.TRUNCATE_PROMPT_TOKENS.name}; without it nothing is cut"
            raise RequestError(tensors.TRUNCATION_SIDE.name, problem)
        return None
    side = _parse_side(request.truncation_side)
    if num_tokens == LONGEST:
        return Truncation(_longest(request.max_tokens, max_seq_len), side)
    if num_tokens < 1:
        problem = f"must be at least 1, or {LONGEST} for the engine's longest, not {num_tokens}"
        raise RequestError(tensors.TRUNCATE_PROMPT_TOKENS.name, problem)
    return Truncation(num_tokens, side)


def _parse_side(raw: bytes | None) -> TruncationSide:
    if raw is None:
        return TruncationSide.LEFT
    try:
        return TruncationSide(raw.decode(errors="replace"))
    except ValueError:
        choices = " or ".join(side.value for side in TruncationSide)
        raise RequestError(tensors.TRUNCATION_SIDE.name, f"must be {choices}, not {raw[:40]!r}") from None


def _longest(max_tokens: int | None, max_seq_len: int) -> int:
    field = tensors.MAX_TOKENS.name
    if max_tokens is None:
        raise RequestError(field, f"is missing; {tensors.TRUNCATE_PROMPT_TOKENS.name} {LONGEST} leaves room for it")
    if not 0 <= max_tokens < max_seq_len:
        raise RequestError(field, f"must be from 0 to {max_seq_len - 1} beside a prompt, not {max_tokens}")
    return max_seq_len - max(1, max_tokens)
