"""The items of an input, and the messages that they are.

Owns their forms. An item is what an earlier answer had as its output, or what a client says now. Never renders a
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from trident_gateway.api.body import invalid, unsupported
from trident_gateway.api.messages import (
    AssistantMessage,
    CalledFunction,
    CalledTool,
    DeveloperMessage,
    Message,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from trident_gateway.errors import InvalidRequestError


class InputTextPart(Struct, tag_field="type", tag="input_text", forbid_unknown_fields=True, frozen=True):
    """A text of the client."""

    text: str


class OutputTextPart(Struct, tag_field="type", tag="output_text", forbid_unknown_fields=True, frozen=True):
    """A text of the model."""

    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class SaidRefusalPart(Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True, frozen=True):
    """A text that a model has said instead of an answer."""

    refusal: str


class ReasoningPart(Struct, tag_field="type", tag="reasoning_text", forbid_unknown_fields=True, frozen=True):
    """A part of the reasoning of a model."""

    text: str


class SummaryPart(Struct, tag_field="type", tag="summary_text", forbid_unknown_fields=True, frozen=True):
    """A summary of what a model has thought."""

    text: str


class InputImagePart(Struct, tag_field="type", tag="input_image", frozen=True):
    """An image, which no model here takes."""


class InputFilePart(Struct, tag_field="type", tag="input_file", frozen=True):
    """A file, which no model here takes."""


class InputAudioPart(Struct, tag_field="type", tag="input_audio", frozen=True):
    """A recording, which no model here takes."""


ItemPart: TypeAlias = (
    InputTextPart | OutputTextPart | SaidRefusalPart | ReasoningPart | InputImagePart | InputFilePart | InputAudioPart
)


class InputItem(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Any item; which fields it must have follows from its type, which a message may leave out."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["user", "system", "developer", "assistant"] | None = None
    content: str | list[ItemPart] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ItemPart] | None = None
    summary: list[SummaryPart] | None = None
    encrypted_content: None = None


_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


def messages_of(instructions: str | None, items: str | Sequence[InputItem]) -> list[Message]:
    """Return the messages of an input.

    Calls and reasoning belong to the assistant's message around them, as chat templates have it.

    Raises:
        InvalidRequestError: an item lacks a field, or has what no model here takes; names the path.
    """
    messages: list[Message] = [] if instructions is None else [SystemMessage(instructions)]
    if isinstance(items, str):
        return [*messages, UserMessage(items)]
    turn = _AssistantTurn()
    for index, item in enumerate(items):
        path = f"input[{index}]"
        _check(item, path)
        if item.type == "reasoning":
            messages += turn.end_if_spoken()
            turn.reasoning += _texts(item.content or [], f"{path}.content")
        elif item.type == "function_call":
            turn.calls.append(CalledTool(item.call_id or "", CalledFunction(item.name or "", item.arguments or "")))
        elif item.type == "message" and item.role == "assistant":
            messages += turn.end_if_spoken()
            turn.texts = _texts(item.content or "", f"{path}.content")
            turn.has_text = True
        else:
            messages += turn.end()
            messages.append(_message(item, path))
    return [*messages, *turn.end()]


class _AssistantTurn:
    """What the assistant has said since the last message of another."""

    def __init__(self) -> None:
        self.reasoning: list[str] = []
        self.texts: list[str] = []
        self.has_text = False
        self.calls: list[CalledTool] = []

    def end_if_spoken(self) -> list[Message]:
        """Return the message if it has more than reasoning, and begin a new one."""
        return self.end() if self.has_text or self.calls else []

    def end(self) -> list[Message]:
        """Return the message, and begin a new one; nothing if there is only reasoning, which nothing followed."""
        messages: list[Message] = []
        if self.has_text or self.calls:
            message = AssistantMessage(
                content="".join(self.texts) if self.has_text else None,
                tool_calls=self.calls or None,
                reasoning_content="".join(self.reasoning) or None,
            )
            messages.append(message)
        self.__init__()  # type: ignore[misc]
        return messages


def _check(item: InputItem, path: str) -> None:
    for name in _FIELDS[item.type]:
        if getattr(item, name) is None:
            raise InvalidRequestError(
                f"Missing required parameter: '{path}.{name}'.",
                code="missing_required_parameter",
                param=f"{path}.{name}",
            )
    others = {name for fields in _FIELDS.values() for name in fields} - set(_FIELDS[item.type])
    if item.type == "reasoning":
        others.discard("content")
    for name in sorted(others):
        if getattr(item, name) is not None:
            raise invalid(f"{path}.{name}", f"does not belong to an item of type '{item.type}'.")


def _message(item: InputItem, path: str) -> Message:
    if item.type == "function_call_output":
        return ToolMessage(_content(item.output or "", f"{path}.output"), item.call_id or "")
    content = _content(item.content or "", f"{path}.content")
    if item.role == "system":
        return SystemMessage(content)
    return DeveloperMessage(content) if item.role == "developer" else UserMessage(content)


def _content(content: str | list[ItemPart], path: str) -> Any:
    if isinstance(content, str):
        return content
    texts = _texts(content, path)
    if not texts:
        raise invalid(path, "must hold at least one part.")
    return [TextPart(text) for text in texts]


def _texts(content: str | Sequence[ItemPart], path: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, SaidRefusalPart):
            texts.append(part.refusal)
        elif isinstance(part, InputTextPart | OutputTextPart | ReasoningPart):
            texts.append(part.text)
        else:
            kind = str(part.__struct_config__.tag)
            raise unsupported(f"{path}[{index}]", f"The models here read text; a part of type '{kind}' is not.")
    return texts
