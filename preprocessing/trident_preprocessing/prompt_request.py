"""The fields of a request that concern its prompt.

Owns their names. Never checks a value: each field is checked where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptRequest:
    """The prompt fields of one request, named like the tensors.

    A field is None where the client left it out. Texts are bytes, as the client sent them.
    """

    text_input: bytes | None = None
    add_special_tokens: bool | None = None
    prompt_token_ids: Sequence[int] | None = None
    messages: bytes | None = None
    tools: bytes | None = None
    chat_template_kwargs: bytes | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    sanitize_control_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: bytes | None = None
    max_tokens: int | None = None
