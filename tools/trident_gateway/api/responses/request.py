"""The body of `/v1/responses`.

Owns its fields, and the rules between them: whatever would need a memory on the server is refused. Never asks what a
model can do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from trident_gateway.api.body import NO_EFFECT, invalid, unsupported
from trident_gateway.api.messages import MAX_MESSAGES
from trident_gateway.api.response_format import JsonObjectFormat, TextFormat
from trident_gateway.api.responses.input_items import InputItem
from trident_gateway.api.sampling_fields import MAX_INT32, CacheKey, ModelName, Probability, SamplingFields
from trident_gateway.tool_calls.tools import Choice, Tool, ToolChoice

LOGPROBS = "message.output_text.logprobs"


class SchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True, frozen=True):
    """JSON that a schema describes. The schema always holds, whether `strict` or not."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """The form of the text."""

    format: TextFormat | JsonObjectFormat | SchemaFormat | None = None
    verbosity: Annotated[None, Meta(description="Ask for it in the instructions.")] = None


class ReasoningConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """The choices about reasoning, of which there are none here."""

    effort: Annotated[None, Meta(description="The model reasons as its chat template has it.")] = None
    summary: Annotated[None, Meta(description="Reasoning is shown as it is; nothing sums it up.")] = None
    generate_summary: Annotated[None, Meta(description="Reasoning is shown as it is; nothing sums it up.")] = None


class FunctionTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True, frozen=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True, frozen=True):
    """The one tool that must be called."""

    name: str


class ResponseStreamOptions(Struct, forbid_unknown_fields=True, frozen=True):
    """The choices about a stream."""

    include_obfuscation: Annotated[bool | None, NO_EFFECT] = None


ToolChoiceField: TypeAlias = Literal["none", "auto", "required"] | NamedTool


class ResponsesRequest(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """An input that is to be answered."""

    model: ModelName
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    prompt_cache_key: CacheKey | None = None
    metadata: dict[str, str] | None = None

    reasoning: Annotated[ReasoningConfig | None, NO_EFFECT] = None
    stream_options: Annotated[ResponseStreamOptions | None, NO_EFFECT] = None
    store: Annotated[bool | None, NO_EFFECT] = None
    background: Annotated[bool | None, NO_EFFECT] = None
    truncation: Annotated[Literal["disabled"] | None, NO_EFFECT] = None
    service_tier: Annotated[Literal["auto", "default"] | None, NO_EFFECT] = None
    user: Annotated[str | None, NO_EFFECT] = None
    safety_identifier: Annotated[str | None, NO_EFFECT] = None

    previous_response_id: Annotated[None, Meta(description="Nothing is stored here; send the items as 'input'.")] = None
    conversation: Annotated[None, Meta(description="Nothing is stored here; send the items as 'input'.")] = None
    prompt: Annotated[None, Meta(description="Nothing is stored here; send the prompt as 'instructions'.")] = None
    max_tool_calls: Annotated[None, Meta(description="It bounds tools that run on the server; none do here.")] = None


def check_responses(request: ResponsesRequest) -> None:
    """Refuse a body whose fields do not go together.

    Raises:
        InvalidRequestError: names the field.
    """
    if request.store:
        raise unsupported("store", "Nothing is stored here; leave it out, or send false.")
    if request.background:
        raise unsupported("background", "Nothing runs beside a request here; leave it out, or send false.")
    if request.top_logprobs is not None and LOGPROBS not in (request.include or ()):
        raise invalid("top_logprobs", f"needs '{LOGPROBS}' in 'include'.")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "needs 'stream' to be true.")
    if request.tool_choice not in (None, "none") and not request.tools:
        raise invalid("tool_choice", "needs 'tools'.")


def sampling_of(request: ResponsesRequest) -> SamplingFields:
    """Return what a request has in common with those for chats."""
    return SamplingFields(
        model=request.model,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        prompt_cache_key=request.prompt_cache_key,
    )


def tools_of(request: ResponsesRequest) -> tuple[Tool, ...]:
    """Return the tools that a request offers."""
    return tuple(Tool(tool.name, tool.parameters) for tool in request.tools or ())


def choice_of(request: ResponsesRequest) -> ToolChoice:
    """Return which of them it wants called."""
    wanted = request.tool_choice
    if isinstance(wanted, NamedTool):
        return ToolChoice(Choice.NAMED, wanted.name, "tool_choice.name")
    if wanted is None:
        return ToolChoice(Choice.AUTO if request.tools else Choice.NONE)
    return ToolChoice(Choice(wanted))
