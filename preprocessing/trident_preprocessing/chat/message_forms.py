"""Messages in the form that the checkpoint's chat template takes.

Owns the choice between forms that mean the same: content as text or as parts, arguments as text or as an object, the
value for no content, the role of the system for that of the developer. Never drops anything but nulls and empty lists
of calls.
"""

from __future__ import annotations

import json
from typing import Any

from trident_preprocessing.chat.template_profile import ContentForm, NullForm, TemplateProfile

Message = dict[str, Any]
#: The separator between the parts of a message that become one text, as in other servers.
_PART_SEPARATOR = "\n"


def conform(messages: list[Message], profile: TemplateProfile) -> list[Message]:
    """Return the messages in the form that a template of this profile takes.

    Args:
        messages: messages from `parse_messages`; they are not changed.
        profile: the profile of the template.
    """
    return [_conform(message, profile) for message in messages]


def _conform(message: Message, profile: TemplateProfile) -> Message:
    put = {key: value for key, value in message.items() if value is not None}
    if not put.get("tool_calls"):
        # Templates test whether the key is there, and would take an empty list of calls for calls.
        put.pop("tool_calls", None)
    if put["role"] == "developer" and not profile.takes_developer:
        put["role"] = "system"
    if profile.empty_is_null and put.get("tool_calls") and _is_blank(put.get("content")):
        put.pop("content", None)
    if "content" in put:
        form = profile.content.get(put["role"], profile.content["user"])
        put["content"] = _content(put["content"], form)
    elif profile.null_content is not NullForm.ABSENT:
        put["content"] = None if profile.null_content is NullForm.NONE else ""
    if "tool_calls" in put:
        put["tool_calls"] = [_call(call, profile.arguments_as_text) for call in put["tool_calls"]]
    return put


def _content(content: Any, form: ContentForm) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if form is ContentForm.PARTS else content
    return _PART_SEPARATOR.join(part["text"] for part in content) if form is ContentForm.TEXT else content


def _is_blank(content: Any) -> bool:
    return not content or (isinstance(content, str) and not content.strip())


def _call(call: Any, as_text: bool) -> Any:
    function = call.get("function")
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if as_text and isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        arguments = _object_in(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _object_in(arguments: str) -> Any:
    """Return the object in a JSON text, or the text itself, because a model's arguments need not be valid JSON."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
