"""The body of `/v1/chat/completions`.

Owns its fields, and the rules between them. Never asks what a model can do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from trident_gateway.api.body import NO_EFFECT, invalid, unsupported
from trident_gateway.api.messages import Messages, check_messages
from trident_gateway.api.response_format import ResponseFormat
from trident_gateway.api.sampling_fields import MAX_INT32, SamplingFields, check_sampling
from trident_gateway.tool_calls.tools import Choice, Tool, ToolChoice

_MAX_TOP_LOGPROBS = 20


class FunctionDefinition(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """The description of a tool, whose arguments follow the schema, whether `strict` or not, unless that is relaxed."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Struct, tag_field="type", tag="function", forbid_unknown_fields=True, frozen=True):
    """A function that the model may call."""

    function: FunctionDefinition


class NamedFunction(Struct, forbid_unknown_fields=True, frozen=True):
    """The name of a tool."""

    name: str


class NamedTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True, frozen=True):
    """The one tool that must be called."""

    function: NamedFunction


ToolChoiceField: TypeAlias = Literal["none", "auto", "required"] | NamedTool
MaxTokens: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_INT32)]


class ChatRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A conversation that is to be continued."""

    messages: Messages
    max_completion_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]] | None, NO_EFFECT] = None
    service_tier: Annotated[Literal["auto", "default"] | None, NO_EFFECT] = None
    store: Annotated[bool | None, NO_EFFECT] = None

    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    functions: Annotated[None, Meta(description="Send the functions as 'tools'.")] = None
    function_call: Annotated[None, Meta(description="Send 'tool_choice' with 'tools'.")] = None
    audio: Annotated[None, Meta(description="The models here answer with text.")] = None
    prediction: Annotated[None, Meta(description="The server makes its own predictions.")] = None
    web_search_options: Annotated[None, Meta(description="Offer a tool that searches.")] = None
    reasoning_effort: Annotated[
        None, Meta(description="Send what the model's template takes in 'chat_template_kwargs'.")
    ] = None
    verbosity: Annotated[None, Meta(description="Ask for it in a message, or bound 'max_completion_tokens'.")] = None


def check_chat(request: ChatRequest, max_n: int) -> None:
    """Refuse a body whose fields do not go together.

    Args:
        request: the body.
        max_n: answers that a client may ask for.

    Raises:
        InvalidRequestError: names the field.
    """
    check_sampling(request, max_n)
    check_messages(request.messages)
    if request.store:
        raise unsupported("store", "Nothing is stored here; leave it out, or send false.")
    bounds = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(bounds) > 1:
        raise invalid("max_tokens", "must not differ from 'max_completion_tokens', which means the same.")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs", "needs 'logprobs' to be true.")
    if request.add_generation_prompt and request.continue_final_message:
        raise invalid("continue_final_message", "cannot be true together with 'add_generation_prompt'.")
    if request.tool_choice not in (None, "none") and not request.tools:
        raise invalid("tool_choice", "needs 'tools'.")


def tools_of(request: ChatRequest) -> tuple[Tool, ...]:
    """Return the tools that a request offers."""
    return tuple(Tool(tool.function.name, tool.function.parameters) for tool in request.tools or ())


def choice_of(request: ChatRequest) -> ToolChoice:
    """Return which of them it wants called."""
    wanted = request.tool_choice
    if isinstance(wanted, NamedTool):
        return ToolChoice(Choice.NAMED, wanted.function.name, "tool_choice.function.name")
    if wanted is None:
        return ToolChoice(Choice.AUTO if request.tools else Choice.NONE)
    return ToolChoice(Choice(wanted))
