"""The checkpoint's chat templates, rendered as transformers renders them.

Owns the choice among several templates, and what counts as a template's refusal. Templates run in transformers'
sandbox; the caller bounds their time. Never changes what it is given: a null in a message reaches the template as None.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

Message = dict[str, Any]

DEFAULT = "default"
#: The template for messages with tools, where a checkpoint has one.
TOOL_USE = "tool_use"
#: What a template may raise when it is given messages for which it was not written.
_RENDER_ERRORS = (
    TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
#: Characters of a template's own message that are kept, because it may quote the whole conversation.
_MAX_ERROR_LENGTH = 300
#: Arguments that clients may give although transformers names them: retrieval templates read these.
_CLIENTS_OWN = frozenset({"documents"})
_SERVERS_OWN = frozenset({"messages"})


class RenderError(Exception):
    """A template's refusal of what it was given; the message is its own, cut to a length that a client can read."""

    def __init__(self, error: Exception) -> None:
        said = str(error) or type(error).__name__
        super().__init__(said if len(said) <= _MAX_ERROR_LENGTH else f"{said[:_MAX_ERROR_LENGTH]}...")


class TemplateRenderer:
    """Renders conversations with the templates of one tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        templates = tokenizer.chat_template or {}
        #: Name -> text of each template; empty where the checkpoint has none.
        self.templates: Mapping[str, str] = dict(templates) if isinstance(templates, Mapping) else {DEFAULT: templates}
        self.added_tokens = tuple(token.content for token in tokenizer.added_tokens_decoder.values())
        self._special_tokens: dict[str, str] = tokenizer.special_tokens_map
        #: Names that clients cannot give as arguments of a template.
        self.reserved_kwargs = _reserved_kwargs(tokenizer)

    def choose(self, *, has_tools: bool) -> str:
        """Return the name of the template for a conversation.

        Raises:
            RenderError: there are several, and none of them is the default.
        """
        if has_tools and TOOL_USE in self.templates:
            return TOOL_USE
        if DEFAULT not in self.templates:
            raise RenderError(ValueError(f"there is no default among its templates {sorted(self.templates)}"))
        return DEFAULT

    def render(self, name: str, messages: list[Message], tools: Any = None, /, **kwargs: Any) -> str:
        """Return the prompt of one conversation, with the special tokens that the template writes spelled out.

        Args:
            name: the name of the template.
            messages: objects with a role and content; they are not changed.
            tools: a list of objects, or None.
            kwargs: further arguments of the template and of transformers.

        Raises:
            RenderError: the template refuses.
        """
        try:
            rendered, _ = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self.templates[name],
                **{**self._special_tokens, **kwargs},
            )
        except _RENDER_ERRORS as error:
            raise RenderError(error) from None
        prompt: str = rendered[0]
        return prompt


def _reserved_kwargs(tokenizer: Any) -> frozenset[str]:
    """Return the arguments that the installed transformers takes itself, and the names of special tokens."""
    functions = (type(tokenizer).apply_chat_template, render_jinja_template)
    names = {
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return frozenset((names | _SERVERS_OWN | set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)) - _CLIENTS_OWN)
