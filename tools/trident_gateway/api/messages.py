"""The messages of a conversation.

Owns their form, and the JSON in which the chat template gets them. Never decides which roles may follow which: the
template does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from trident_gateway.api.body import NO_EFFECT, invalid, unsupported

#: Far more than any context holds.
MAX_MESSAGES = 16_384


class TextPart(Struct, tag_field="type", tag="text", forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """A text among several."""

    text: str
    cache_control: Annotated[Any, NO_EFFECT] = None


class RefusalPart(Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True, frozen=True):
    """A text that a model has said instead of an answer."""

    refusal: str


class ImagePart(Struct, tag_field="type", tag="image_url", frozen=True):
    """An image, which no model here takes."""


class AudioPart(Struct, tag_field="type", tag="input_audio", frozen=True):
    """A recording, which no model here takes."""


class FilePart(Struct, tag_field="type", tag="file", frozen=True):
    """A file, which no model here takes."""


class VideoPart(Struct, tag_field="type", tag="video_url", frozen=True):
    """A video, which no model here takes."""


Part: TypeAlias = TextPart | RefusalPart | ImagePart | AudioPart | FilePart | VideoPart
Content: TypeAlias = str | Annotated[list[Part], Meta(min_length=1)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]


class CalledFunction(Struct, forbid_unknown_fields=True, frozen=True):
    """The function that a model has called; `arguments` is JSON text."""

    name: str
    arguments: str


class CalledTool(Struct, forbid_unknown_fields=True, omit_defaults=False, frozen=True):
    """A call of an earlier answer. `index` stands in the deltas of streams, and is dropped."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class SystemMessage(
    Struct, tag_field="role", tag="system", forbid_unknown_fields=True, omit_defaults=True, frozen=True
):
    """The instructions for the model."""

    content: Content
    name: Name | None = None


class DeveloperMessage(
    Struct, tag_field="role", tag="developer", forbid_unknown_fields=True, omit_defaults=True, frozen=True
):
    """The newer name of a system message."""

    content: Content
    name: Name | None = None


class UserMessage(Struct, tag_field="role", tag="user", forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """The words of the user."""

    content: Content
    name: Name | None = None


class AssistantMessage(
    Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True, omit_defaults=True, frozen=True
):
    """An earlier answer, in the form in which it was given."""

    content: Content | None = None
    name: Name | None = None
    refusal: str | None = None
    tool_calls: list[CalledTool] | None = None
    reasoning_content: str | None = None
    annotations: Annotated[list[Any] | None, NO_EFFECT] = None
    audio: Annotated[None, Meta(description="The models here answer with text; send what was said as content.")] = None
    function_call: Annotated[None, Meta(description="Send tool_calls.")] = None


class ToolMessage(Struct, tag_field="role", tag="tool", forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """The result of a call."""

    content: Content
    tool_call_id: str
    name: Name | None = None


class FunctionMessage(Struct, tag_field="role", tag="function", frozen=True):
    """The older form of a tool's message, which is refused."""


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage

Messages: TypeAlias = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


def check_messages(messages: Sequence[Message], where: str = "messages") -> None:
    """Refuse messages whose types are right and that cannot be sent to a model.

    Args:
        messages: as they were decoded.
        where: the path of their list.

    Raises:
        InvalidRequestError: names the message, or the part of it.
    """
    for index, message in enumerate(messages):
        path = f"{where}[{index}]"
        if isinstance(message, FunctionMessage):
            raise unsupported(f"{path}.role", "Send the result with role 'tool' and its tool_call_id.")
        if isinstance(message, AssistantMessage) and _says_nothing(message):
            raise invalid(f"{path}.content", "must be given where there are no tool_calls.")
        if isinstance(message.content, list):
            check_parts(message.content, f"{path}.content")


def check_parts(parts: Sequence[Part], where: str) -> None:
    """Refuse parts that are not text.

    Raises:
        InvalidRequestError: names the first such part.
    """
    for index, part in enumerate(parts):
        if not isinstance(part, TextPart | RefusalPart):
            kind = str(part.__struct_config__.tag)
            raise unsupported(f"{where}[{index}]", f"The models here read text; a part of type '{kind}' is not.")


def _says_nothing(message: AssistantMessage) -> bool:
    return message.content is None and message.refusal is None and not message.tool_calls


def render_messages(messages: Sequence[Message]) -> str:
    """Return messages as the JSON that the ensemble takes: no nulls, no empty lists, no refusals."""
    return msgspec.json.encode([_plain(message) for message in messages]).decode()


def _plain(message: Message) -> Any:
    if isinstance(message, FunctionMessage) or not (
        isinstance(message, AssistantMessage) or isinstance(message.content, list)
    ):
        return message
    raw: dict[str, Any] = msgspec.to_builtins(message)
    if isinstance(message.content, list):
        raw["content"] = [_text_of(part) for part in message.content]
    if isinstance(message, AssistantMessage):
        _put_assistant(message, raw)
    return raw


def _put_assistant(message: AssistantMessage, raw: dict[str, Any]) -> None:
    raw.pop("annotations", None)
    refusal = raw.pop("refusal", None)
    if message.content is None and refusal is not None:
        raw["content"] = refusal
    calls = raw.pop("tool_calls", None)
    if calls:
        raw["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]


def _text_of(part: Part) -> dict[str, str]:
    text = part.text if isinstance(part, TextPart) else part.refusal if isinstance(part, RefusalPart) else ""
    return {"type": "text", "text": text}
