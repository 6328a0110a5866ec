"""The check of a chat template with ordinary conversations, for the user who builds.

Owns those conversations, and the way to find the end of an answer in their prompts. Never refuses a template: some
models have no system role, or answer only once, and are served as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from trident_preprocessing.chat.template_renderer import DEFAULT, Message, RenderError, TemplateRenderer

#: Words that no template has.
_USER, _SYSTEM, _ANSWER, _NEXT = "tridentuserword", "tridentsystemword", "tridentanswerword", "tridentnextword"


@dataclass(frozen=True)
class TemplateFindings:
    """The findings about one chat template.

    Args:
        refused: conversations that the template does not render, with its own message.
        end_of_turn: id and text of the first added token after an answer; None if there is none.
        after_answer: the text after an answer, up to what the next user says.
    """

    refused: dict[str, str]
    end_of_turn: tuple[int, str] | None
    after_answer: str


def find_out(renderer: TemplateRenderer, tokenizer: Tokenizer) -> TemplateFindings | None:
    """Render ordinary conversations with the default template; None where there is no default.

    Args:
        renderer: renders the checkpoint's templates.
        tokenizer: finds the tokens in a prompt.
    """
    if DEFAULT not in renderer.templates:
        return None
    refused: dict[str, str] = {}
    for what, roles in _CONVERSATIONS.items():
        prompt = _render(renderer, roles, add_generation_prompt=roles[-1] == "user")
        if isinstance(prompt, RenderError):
            refused[what] = str(prompt)
    after_answer = _after_answer(renderer)
    return TemplateFindings(refused, _first_added(after_answer, tokenizer), after_answer)


_CONVERSATIONS = {
    "a system message": ("system", "user"),
    "a second turn": ("user", "assistant", "user"),
}
_WORDS = {"system": _SYSTEM, "assistant": _ANSWER}


def _render(renderer: TemplateRenderer, roles: tuple[str, ...], *, add_generation_prompt: bool) -> str | RenderError:
    """Render a conversation of texts, or of parts where texts are refused or left out."""
    last_error: RenderError | None = None
    for as_parts in (False, True):
        messages: list[Message] = []
        for place, role in enumerate(roles):
            word = _WORDS.get(role, _NEXT if place else _USER)
            content: Any = [{"type": "text", "text": word}] if as_parts else word
            messages.append({"role": role, "content": content})
        try:
            prompt = renderer.render(DEFAULT, messages, add_generation_prompt=add_generation_prompt)
        except RenderError as error:
            last_error = last_error or error
            continue
        if all(_text(message) in prompt for message in messages):
            return prompt
    return last_error or RenderError(ValueError("it leaves out what a message says"))


def _text(message: Message) -> str:
    content = message["content"]
    text: str = content if isinstance(content, str) else content[0]["text"]
    return text


def _after_answer(renderer: TemplateRenderer) -> str:
    """Return the text after an answer, preferably before another turn.

    Some templates end the last answer in another way than earlier ones.
    """
    for roles in (("user", "assistant", "user"), ("user", "assistant")):
        prompt = _render(renderer, roles, add_generation_prompt=False)
        if not isinstance(prompt, RenderError):
            return prompt.partition(_ANSWER)[2].partition(_NEXT)[0]
    return ""


def _first_added(text: str, tokenizer: Tokenizer) -> tuple[int, str] | None:
    """Return the first added token in a text, special or not."""
    added = tokenizer.get_added_tokens_decoder()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return next(((token_id, added[token_id].content) for token_id in ids if token_id in added), None)
