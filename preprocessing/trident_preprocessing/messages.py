"""Chat messages, tools and template arguments as clients send them: OpenAI's JSON.

Owns what counts as each of them and how it is put for templates. Never renders them; which roles exist and in which
order is the template's.
"""

from __future__ import annotations

import json
from typing import Any

from trident_ensemble import tensors
from trident_ensemble.errors import RequestError

Message = dict[str, Any]
FIELD = tensors.MESSAGES.name
_EXAMPLE = tensors.MESSAGES.doc.partition(": ")[2]
_TOOLS_EXAMPLE = '[{"type": "function", "function": {"name": "...", "parameters": {...}}}, ...]'
#: What stands between two parts of one message, as other servers have it.
_PART_SEPARATOR = "\n"
#: The request has inputs of their own for these, or the server answers for them.
_RESERVED_KWARGS = frozenset({
    "messages", "conversation", "conversations", "tools", "add_generation_prompt", "continue_final_message",
    "chat_template", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs", "self",
})  # fmt: skip


def parse_messages(text: str) -> list[Message]:
    """The messages in a JSON text.

    Every message is an object with the text `role`. Its `content` is a text or a list of text parts, which become one
    text; it may be null or absent beside `tool_calls`. Arguments of tool calls that are the JSON text of an object, as
    OpenAI's API has them, become that object, which is what templates expect. Whatever else a message has is left to
    the template.

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
        calls = message.get("tool_calls")
        if message.get("content") is not None or not calls:
            message["content"] = _text_of(f"{where}.content", message.get("content"))
        if calls is not None:
            _parse_arguments(f"{where}.tool_calls", calls)
    return messages


def parse_tools(text: str) -> list[dict[str, Any]] | None:
    """The tools in a JSON text, as they are; None if there are none.

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


def parse_template_kwargs(text: str) -> dict[str, Any]:
    """The template's further arguments in a JSON text.

    Raises:
        RequestError: not a JSON object, or an argument that is not the client's to give this way.
    """
    field = tensors.CHAT_TEMPLATE_KWARGS.name
    kwargs = _parse_json(field, text, '{"enable_thinking": false}')
    if not isinstance(kwargs, dict):
        raise RequestError(field, 'must be an object; send {"enable_thinking": false}, say')
    for name in kwargs:
        if name in _RESERVED_KWARGS:
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


def _text_of(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(FIELD, f"{where} must be a text, or a list of text parts; send {_EXAMPLE}")
    texts: list[str] = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RequestError(FIELD, f'{where}[{place}] must be a part; send {{"type": "text", "text": "..."}}')
        if part["type"] != "text":
            raise RequestError(FIELD, f"{where}[{place}].type {part['type'][:40]!r} is not served: text alone is")
        if not isinstance(part.get("text"), str):
            raise RequestError(FIELD, f"{where}[{place}].text must be a text")
        texts.append(part["text"])
    return _PART_SEPARATOR.join(texts)


def _parse_arguments(where: str, calls: Any) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RequestError(FIELD, f"{where} must be a list of objects")
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            function["arguments"] = _object_in(function["arguments"])


def _object_in(arguments: str) -> Any:
    """What a model wrote as arguments need not be JSON; a function without any has the empty text."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
