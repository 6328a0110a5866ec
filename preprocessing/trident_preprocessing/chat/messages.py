"""Chat messages, tools and template arguments as clients send them: OpenAI's JSON.

Owns what counts as each of them. Never changes or renders them; which roles exist and in which order is the template's.
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
    """Return the messages in a JSON text, as they are.

    Every message is an object with the text `role`, a name of letters, digits and `_.-`: templates write it between
    the pieces of control tokens. Its `content` is a text or a list of text parts; it may be null or absent beside
    `tool_calls`. Whatever else a message has is left to the template.

    Raises:
        RequestError: not JSON, or not that; says which message.
    """
    messages = _parse_json(FIELD, text, _EXAMPLE)
    if not isinstance(messages, list) or not messages:
        raise RequestError(FIELD, f"must be a list of at least one message; send {_EXAMPLE}")
    for place, message in enumerate(messages):
        where = f"[{place}]"
        if not isinstance(message, dict):
            raise RequestError(FIELD, f"{where} must be an object with role and content; send {_EXAMPLE}")
        if not isinstance(message.get("role"), str):
            raise RequestError(FIELD, f"{where}.role must be a text; send {_EXAMPLE}")
        if not _ROLE.fullmatch(message["role"]):
            problem = (
                f"{where}.role {message['role'][:40]!r} is none: 64 letters, digits and _.- at most; send {_EXAMPLE}"
            )
            raise RequestError(FIELD, problem)
        calls = message.get("tool_calls")
        if message.get("content") is not None or not calls:
            _check_content(f"{where}.content", message.get("content"))
        if calls is not None:
            _check_calls(f"{where}.tool_calls", calls)
    return messages


def parse_tools(text: str) -> list[dict[str, Any]] | None:
    """Return the tools in a JSON text, as they are; None if there are none.

    Raises:
        RequestError: not a JSON list of objects.
    """
    field = tensors.TOOLS.name
    tools = _parse_json(field, text, _TOOLS_EXAMPLE)
    if not isinstance(tools, list):
        raise RequestError(field, f"must be a list; send {_TOOLS_EXAMPLE}")
    for place, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise RequestError(field, f"[{place}] must be an object; send {_TOOLS_EXAMPLE}")
    return tools or None


def parse_template_kwargs(text: str, reserved: Collection[str]) -> dict[str, Any]:
    """Return the template's further arguments in a JSON text.

    Args:
        text: as the client sent it.
        reserved: names that are not the client's to give this way.

    Raises:
        RequestError: not a JSON object, or an argument that is not the client's to give this way.
    """
    field = tensors.CHAT_TEMPLATE_KWARGS.name
    kwargs = _parse_json(field, text, '{"enable_thinking": false}')
    if not isinstance(kwargs, dict):
        raise RequestError(field, 'must be an object; send {"enable_thinking": false}, say')
    for name in kwargs:
        if name in reserved:
            raise RequestError(field, f"{name} cannot be given here; {_advice(name)}")
    return kwargs


def _advice(name: str) -> str:
    is_input = any(spec.name == name for spec in tensors.PROMPT_INPUTS)
    return f"send the input {name}" if is_input else "only what the template itself asks for can"


def _parse_json(field: str, text: str, example: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(field, f"not JSON ({error}); send {example}") from None


def _check_content(where: str, content: Any) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(FIELD, f"{where} must be a text, or a list of text parts; send {_EXAMPLE}")
    for place, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RequestError(FIELD, f'{where}[{place}] must be a part; send {{"type": "text", "text": "..."}}')
        if part["type"] != "text":
            raise RequestError(FIELD, f"{where}[{place}].type {part['type'][:40]!r} is not served: text alone is")
        if not isinstance(part.get("text"), str):
            raise RequestError(FIELD, f"{where}[{place}].text must be a text")


def _check_calls(where: str, calls: Any) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RequestError(FIELD, f"{where} must be a list of objects")
