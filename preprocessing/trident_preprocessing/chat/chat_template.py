"""The rendering of chat messages into the text of a prompt, by the checkpoint's own chat template.

Owns which chat inputs of a request go together, and the errors for a template that refuses. Templates run in
transformers' sandbox for a bounded time; the time and memory of a single operation cannot be bounded. Never tokenizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.client_input import decode_text
from trident_ensemble.contract.errors import ArtifactError, RequestError
from trident_ensemble.contract.tensors import TensorSpec
from trident_preprocessing.chat.client_text import ClientText, Inputs
from trident_preprocessing.chat.left_out import refuse_left_out
from trident_preprocessing.chat.message_forms import Message, conform
from trident_preprocessing.chat.messages import parse_messages, parse_template_kwargs, parse_tools
from trident_preprocessing.chat.template_probe import probe_profiles
from trident_preprocessing.chat.template_profile import TemplateProfile
from trident_preprocessing.chat.template_renderer import RenderError, TemplateRenderer
from trident_preprocessing.chat.time_limit import TimeLimit, TimeLimitError
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.tokens.control_tokens import ControlTokens

Result = TypeVar("Result")

FIELD = tensors.MESSAGES.name
#: Inputs that only a request with messages may have.
_CHAT_INPUTS = (
    tensors.TOOLS, tensors.CHAT_TEMPLATE_KWARGS, tensors.ADD_GENERATION_PROMPT, tensors.CONTINUE_FINAL_MESSAGE,
    tensors.SANITIZE_CONTROL_TOKENS,
)  # fmt: skip
_TOO_LARGE = "a conversation for the engine's longest prompt can have"


def refuse_chat_inputs(request: PromptRequest, given: TensorSpec) -> None:
    """Refuse inputs that only go with messages, for a request whose prompt is given in another way.

    Raises:
        RequestError: there is such an input; names the first one.
    """
    for spec in _CHAT_INPUTS:
        if getattr(request, spec.name) is not None:
            raise RequestError(spec.name, f"only goes with {FIELD}; {given.name} is taken as it is")


def refuse_text_inputs(request: PromptRequest, why: str) -> None:
    """Refuse inputs that only go with a plain text, for a request whose prompt is given in another way.

    Args:
        request: the request.
        why: completes the sentence "only goes with text_input;" for a client.

    Raises:
        RequestError: there is such an input; names it.
    """
    if request.add_special_tokens is not None:
        raise RequestError(tensors.ADD_SPECIAL_TOKENS.name, f"only goes with {tensors.TEXT_INPUT.name}; {why}")


class RenderedPrompt(str):
    """The text of a rendered prompt.

    Args:
        text: the whole text.
        masked: the same text with every spelling that must stay text made unrecognizable; None if there is none.
    """

    __slots__ = ("masked",)
    masked: str | None

    def __new__(cls, text: str, masked: str | None = None) -> RenderedPrompt:
        prompt = super().__new__(cls, text)
        prompt.masked = masked
        return prompt


class ChatTemplate:
    """The chat templates of one tokenizer; a template named `tool_use` is for messages with tools.

    Args:
        tokenizer: a tokenizer of transformers.
        profiles: the profiles of the templates from the engine folder; None to probe the templates here.
        max_render_seconds: CPU time that the templates may take for one request.
    """

    def __init__(
        self,
        tokenizer: Any,
        profiles: Mapping[str, TemplateProfile] | None = None,
        max_render_seconds: float = 1,
    ) -> None:
        self._renderer = TemplateRenderer(tokenizer)
        self._profiles = probe_profiles(self._renderer) if profiles is None else profiles
        if self._profiles.keys() != self._renderer.templates.keys():
            found, known = sorted(self._renderer.templates), sorted(self._profiles)
            raise ArtifactError(f"{layout.TEMPLATE_PROFILES_FILE}: has the templates {known}, not {found}; build again")
        written = {token for profile in self._profiles.values() for token in profile.written}
        self._tokens = ControlTokens(tokenizer, written)
        self._client_text = ClientText(self._tokens)
        self._time_limit = TimeLimit(max_render_seconds)

    def render(self, request: PromptRequest, max_json_bytes: int) -> RenderedPrompt:
        """Render the prompt of a request with messages, with all its special tokens written out.

        Args:
            request: the request; its truncation is ignored.
            max_json_bytes: limit on the messages, the tools and the template's arguments, each.

        Raises:
            RequestError: an input is wrong, the checkpoint has no template, or the template refuses the messages or
                leaves something out; names the field.
        """
        assert request.messages is not None
        messages = parse_messages(decode_text(FIELD, request.messages, max_json_bytes, _TOO_LARGE))
        tools, kwargs = None, {}
        if request.tools is not None:
            tools = parse_tools(decode_text(tensors.TOOLS.name, request.tools, max_json_bytes, _TOO_LARGE))
        if request.chat_template_kwargs is not None:
            text = decode_text(
                tensors.CHAT_TEMPLATE_KWARGS.name, request.chat_template_kwargs, max_json_bytes, _TOO_LARGE
            )
            kwargs = parse_template_kwargs(text, self._renderer.reserved_kwargs)
        continue_final_message = bool(request.continue_final_message)
        if continue_final_message and request.add_generation_prompt:
            problem = "cannot go with add_generation_prompt: an answer either begins or is continued; send one of them"
            raise RequestError(tensors.CONTINUE_FINAL_MESSAGE.name, problem)
        if not self._renderer.templates:
            raise RequestError(FIELD, "the served checkpoint has no chat template; send text_input")
        options = {
            "add_generation_prompt": request.add_generation_prompt is not False and not continue_final_message,
            "continue_final_message": continue_final_message,
        }
        sanitize = request.sanitize_control_tokens is not False
        return self._within_limit(lambda: self._render(messages, tools, kwargs, options, sanitize))

    def encode(self, prompt: str, masked: str) -> list[int]:
        """Tokenize a prompt that has been masked.

        Raises:
            RequestError: the tokenizer makes a control token of ordinary text.
        """
        return self._tokens.encode(prompt, masked)

    def _render(
        self, messages: list[Message], tools: Any, kwargs: dict[str, Any], options: dict[str, bool], sanitize: bool
    ) -> RenderedPrompt:
        name = self._renderer.choose(has_tools=tools is not None)
        roles = [message["role"] for message in messages]
        messages = conform(messages, self._profiles[name])

        def render(inputs: Inputs) -> str:
            return self._renderer.render(name, inputs[0], inputs[1], **inputs[2], **options)

        inputs = (messages, tools, kwargs)
        prompt = render(inputs)
        refuse_left_out(lambda messages, tools: render((messages, tools, kwargs)), messages, tools, prompt, roles)
        if not sanitize or self._client_text.is_harmless(inputs):
            return RenderedPrompt(prompt)
        return RenderedPrompt(*self._client_text.mask(render, inputs, prompt))

    def _within_limit(self, work: Callable[[], Result]) -> Result:
        try:
            return self._time_limit.run(work)
        except TimeLimitError:
            problem = f"the checkpoint's chat template takes more than {self._time_limit.seconds:g} s for them"
            raise RequestError(FIELD, problem) from None
        except RenderError as error:
            raise RequestError(FIELD, f"the checkpoint's chat template refuses them: {error}") from None
        except RecursionError:
            raise RequestError(FIELD, "are nested too deeply") from None
