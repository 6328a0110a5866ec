"""Chat messages, tools and template arguments as clients send them, in the JSON of OpenAI's API.

Owns the checks of their form. Never changes or renders them; the chat template decides which roles exist, and in which
order they may come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError

Message = dict[str, Any]
FIELD = tensors.MESSAGES.name
_EXAMPLE = tensors.MESSAGES.doc.partition(": ")[2]
_TOOLS_EXAMPLE = '[{"type": "function", "function": {"name": "...", "parameters": {...}}}, ...]'
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_messages(text: str) -> list[Message]:
    """Read messages from JSON text; they are returned unchanged.

    A message is an object with a text `role` of letters, digits and `_.-`, because templates write it between pieces of
    control tokens. Its `content` is a text or a list of text parts, and may be null or absent beside `tool_calls`. The
    template decides about all other keys.

    Raises:
        RequestError: the text is not valid JSON, or a message does not have this form; says which message.
    """
    messages = _parse_json(FIELD, text, _EXAMPLE)
    if not isinstance(messages, list) or not messages:
        raise RequestError(FIELD, f"must be a list of at least one message; send {_EXAMPLE}")
    for index, message in enumerate(messages):
        where = f"[{index}]"
        if not isinstance(message, dict):
            raise RequestError(FIELD, f"{where} must be an object with role and content; send {_EXAMPLE}")
        if not isinstance(message.get("role"), str):
            raise RequestError(FIELD, f"{where}.role must be a text; send {_EXAMPLE}")
        if not _ROLE.fullmatch(message["role"]):
            problem = f"{where}.role {message['role'][:40]!r} must be at most 64 letters, digits and _.-"
            raise RequestError(FIELD, f"{problem}; send {_EXAMPLE}")
        calls = message.get("tool_calls")
        if message.get("content") is not None or not calls:
            _check_content(f"{where}.content", message.get("content"))
        if calls is not None:
            _check_calls(f"{where}.tool_calls", calls)
    return messages


def parse_tools(text: str) -> list[dict[str, Any]] | None:
    """Read tools from JSON text; they are returned unchanged, or None for an empty list.

    Raises:
        RequestError: the text is not a JSON list of objects.
    """
    field = tensors.TOOLS.name
    tools = _parse_json(field, text, _TOOLS_EXAMPLE)
    if not isinstance(tools, list):
        raise RequestError(field, f"must be a list; send {_TOOLS_EXAMPLE}")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise RequestError(field, f"[{index}] must be an object; send {_TOOLS_EXAMPLE}")
    return tools or None


def parse_template_kwargs(text: str, reserved: Collection[str]) -> dict[str, Any]:
    """Read further arguments of the chat template from JSON text.

    Args:
        text: the text that the client sent.
        reserved: names of arguments that a client cannot give.

    Raises:
        RequestError: the text is not a JSON object, or it has a reserved name.
    """
    field = tensors.CHAT_TEMPLATE_KWARGS.name
    kwargs = _parse_json(field, text, '{"enable_thinking": false}')
    if not isinstance(kwargs, dict):
        raise RequestError(field, 'must be an object; send, for example, {"enable_thinking": false}')
    for name in kwargs:
        if name in reserved:
            raise RequestError(field, f"{name} cannot be given here; {_advice(name)}")
    return kwargs


def _advice(name: str) -> str:
    is_input = any(spec.name == name for spec in tensors.PROMPT_INPUTS)
    return f"send the input {name}" if is_input else "only arguments that the template itself reads can"


def _parse_json(field: str, text: str, example: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(field, f"is not valid JSON ({error}); send {example}") from None


def _check_content(where: str, content: Any) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(FIELD, f"{where} must be a text, or a list of text parts; send {_EXAMPLE}")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RequestError(FIELD, f'{where}[{index}] must be a part; send {{"type": "text", "text": "..."}}')
        if part["type"] != "text":
            raise RequestError(FIELD, f"{where}[{index}].type {part['type'][:40]!r} is not supported; only text is")
        if not isinstance(part.get("text"), str):
            raise RequestError(FIELD, f"{where}[{index}].text must be a text")


def _check_calls(where: str, calls: Any) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RequestError(FIELD, f"{where} must be a list of objects")
