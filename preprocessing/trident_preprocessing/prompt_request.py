"""What a request says of its prompt.

Owns the fields alone; what each may hold is checked where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptRequest:
    """Named as the tensors are; None where the client left one out. Texts are bytes, as they came."""

    text_input: bytes | None = None
    add_special_tokens: bool | None = None
    messages: bytes | None = None
    tools: bytes | None = None
    chat_template_kwargs: bytes | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    sanitize_control_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: bytes | None = None
    max_tokens: int | None = None
