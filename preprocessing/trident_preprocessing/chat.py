"""Chat messages to the text of a prompt, by the checkpoint's own chat template.

Owns which of a request's chat inputs go together, the rendering and what is said when a template refuses. Never
tokenizes. Templates run in transformers' sandbox, for a bounded time; what one operation of them takes (of memory,
too) cannot be bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jinja2 import TemplateError

from trident_ensemble import tensors
from trident_ensemble.errors import RequestError
from trident_preprocessing.messages import parse_messages, parse_template_kwargs, parse_tools
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.texts import decode_text
from trident_preprocessing.time_limit import TimeLimit, TimeLimitError

FIELD = tensors.MESSAGES.name
#: What goes with messages alone.
_CHAT_INPUTS = (
    tensors.TOOLS, tensors.CHAT_TEMPLATE_KWARGS, tensors.ADD_GENERATION_PROMPT, tensors.CONTINUE_FINAL_MESSAGE,
)  # fmt: skip
#: What a template that was written for other messages may raise while it is given these.
_RENDER_ERRORS = (
    TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
#: Of a template's own words; an error may quote the whole conversation.
_MAX_ERROR_LENGTH = 300
_TOO_LARGE = "a conversation for the engine's longest prompt can have"


def refuse_chat_inputs(request: PromptRequest) -> None:
    """Refuse what only messages can have, for a request without.

    Raises:
        RequestError: names the first of them.
    """
    for spec in _CHAT_INPUTS:
        if getattr(request, spec.name) is not None:
            raise RequestError(spec.name, f"goes with {FIELD} alone; {tensors.TEXT_INPUT.name} is taken as it is")


class ChatTemplate:
    """The chat template of one tokenizer, or its several by name: `tool_use` is for messages with tools.

    Args:
        tokenizer: of transformers.
        max_render_seconds: a template that computes longer is given up.
    """

    def __init__(self, tokenizer: Any, max_render_seconds: float = 1) -> None:
        self._tokenizer = tokenizer
        self._time_limit = TimeLimit(max_render_seconds)

    def render(self, request: PromptRequest, max_json_bytes: int) -> str:
        """The prompt for a request with messages, with all the special tokens it shall have written out.

        Args:
            request: its truncation is not looked at.
            max_json_bytes: of messages, tools and arguments each.

        Raises:
            RequestError: an input that is not what it must be, a checkpoint without a template, or a template that
                refuses; names the field.
        """
        assert request.messages is not None
        messages = parse_messages(decode_text(FIELD, request.messages, max_json_bytes, _TOO_LARGE))
        tools, kwargs = None, {}
        if request.tools is not None:
            tools = parse_tools(decode_text(tensors.TOOLS.name, request.tools, max_json_bytes, _TOO_LARGE))
        if request.chat_template_kwargs is not None:
            field = tensors.CHAT_TEMPLATE_KWARGS.name
            kwargs = parse_template_kwargs(decode_text(field, request.chat_template_kwargs, max_json_bytes, _TOO_LARGE))
        continue_final_message = bool(request.continue_final_message)
        if continue_final_message and request.add_generation_prompt:
            problem = "cannot go with add_generation_prompt: the answer begins anew, or goes on; send one of them"
            raise RequestError(tensors.CONTINUE_FINAL_MESSAGE.name, problem)
        if not self._tokenizer.chat_template:
            raise RequestError(FIELD, "the served checkpoint has no chat template; send text_input")
        self._check_tools(tools)
        kwargs["add_generation_prompt"] = request.add_generation_prompt is not False and not continue_final_message
        kwargs["continue_final_message"] = continue_final_message
        return self._render(messages, tools, kwargs)

    def _check_tools(self, tools: list[dict[str, Any]] | None) -> None:
        """A template that never reads them would leave them out, and the model would know of none."""
        templates = self._tokenizer.chat_template
        texts = templates.values() if isinstance(templates, Mapping) else [templates]
        if tools is not None and not any("tools" in text for text in texts):
            raise RequestError(tensors.TOOLS.name, "the checkpoint's chat template takes no tools; leave them out")

    def _render(self, messages: list[dict[str, Any]], tools: Any, kwargs: dict[str, Any]) -> str:
        render = partial(self._tokenizer.apply_chat_template, messages, tools=tools, tokenize=False, **kwargs)
        try:
            prompt: str = self._time_limit.run(render)
        except TimeLimitError:
            problem = f"the checkpoint's chat template takes more than {self._time_limit.seconds:g} s for them"
            raise RequestError(FIELD, problem) from None
        except _RENDER_ERRORS as error:
            said = str(error) or type(error).__name__
            said = said if len(said) <= _MAX_ERROR_LENGTH else f"{said[:_MAX_ERROR_LENGTH]}..."
            raise RequestError(FIELD, f"the checkpoint's chat template refuses them: {said}") from None
        return prompt
