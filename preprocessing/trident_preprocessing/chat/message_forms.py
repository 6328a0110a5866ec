"""Messages put as the checkpoint's chat template takes them.

Owns the choice between the forms that mean the same: content as text or parts, arguments as text or an object, what
stands for no content, the system's role for the developer's. Never drops anything but nulls and lists of no calls.
"""

from __future__ import annotations

import json
from typing import Any

from trident_preprocessing.chat.template_profile import ContentForm, NullForm, TemplateProfile

Message = dict[str, Any]
#: What stands between two parts of one message that becomes a text, as other servers have it.
_PART_SEPARATOR = "\n"


def conform(messages: list[Message], profile: TemplateProfile) -> list[Message]:
    """Return the messages as a template of this profile takes them.

    Args:
        messages: of `parse_messages`; not changed.
        profile: the template's.
    """
    return [_conform(message, profile) for message in messages]


def _conform(message: Message, profile: TemplateProfile) -> Message:
    put = {key: value for key, value in message.items() if value is not None}
    if not put.get("tool_calls"):
        # Templates ask whether the key is there, and take an answer with a list of no calls for calls.
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
    """What a model wrote as arguments need not be JSON; a function without any has the empty text."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
