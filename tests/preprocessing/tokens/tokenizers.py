"""Tokenizers with the control tokens of the families in `templates`."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.tokenizer_zoo import SPECIAL, tokenizer_of

CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|User|>", "<|Assistant|>",
    "<|end|>", "<|start|>", "<|message|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
)  # fmt: skip
#: Added tokens that no tokenizer calls special: of these, a template's are control tokens.
OTHERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "</think>", "<|user|>", "<|assistant|>")
ORDINARY = ("<table>", "\n\n\n")


@cache
def backend(family: str) -> Tokenizer:
    """The tokenizer of a family of the zoo with these."""
    made = Tokenizer.from_str(tokenizer_of(family).to_str())
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*OTHERS, *ORDINARY)])
    return made


@cache
def without(family: str, spellings: frozenset[str]) -> Tokenizer:
    """The same without some of its added tokens."""
    raw = json.loads(backend(family).to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in spellings]
    # Added again, the others get other ids, which does not matter: whoever asks, asks for text without them.
    return Tokenizer.from_str(json.dumps(raw))


def tokenizer(template: str | dict[str, str], family: str = "byte_level_bpe") -> Any:
    """One of transformers, with a chat template."""
    made = PreTrainedTokenizerFast(tokenizer_object=backend(family), bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    made.chat_template = template
    return made
