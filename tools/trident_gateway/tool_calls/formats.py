"""The calls of tools in each model's format, as structural tags.

Owns how calls are spelled, and how many there may be. The white space that models put between the parts of a call is
free within bounds. Never knows `tool_choice`: it is told whether there may be text, and how many calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from trident_ensemble.contract.model_card import Marker, ToolFormat
from trident_gateway.tool_calls.tools import Tool

Format: TypeAlias = dict[str, Any]

#: White space between the parts of a call.
BLANKS = r"[ \n\r\t]{0,8}"


@dataclass(frozen=True)
class Calls:
    """What calls an answer has.

    Args:
        markers: the model's markers, by role.
        tools: the tools that may be called.
        may_be_text: the answer may be text; else it is calls alone.
        parallel: there may be several calls.
        excludes: texts that the free text must not have.
    """

    markers: Mapping[str, Marker]
    tools: Sequence[Tool]
    may_be_text: bool
    parallel: bool
    excludes: tuple[str, ...] = ()


def schema_of(tool: Tool) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments, which are an object whatever it leaves open."""
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.parameters}


def format_calls(tool_format: ToolFormat, calls: Calls) -> Format:
    """Return the format of an answer."""
    return _FORMATS[tool_format](calls)


def _hermes(calls: Calls) -> Format:
    start, end = calls.markers["start"].text, calls.markers["end"].text
    return _tags([_tag(start, _call_object(tool, "arguments"), end) for tool in calls.tools], start, "\n", calls)


def _mistral(calls: Calls) -> Format:
    start = calls.markers["start"].text
    if "arguments" in calls.markers:
        tags = [_tag(start, _named_arguments(tool, calls.markers), "") for tool in calls.tools]
        return _tags(tags, start, "", calls)
    elements = {
        "type": "tags_with_separator",
        "tags": [_tag("", _call_object(tool, "arguments"), "") for tool in calls.tools],
        "separator": ",",
        "at_least_one": True,
        "stop_after_first": not calls.parallel,
    }
    array = _tag(start, sequence(regex(BLANKS + r"\["), elements), "]")
    if not calls.may_be_text:
        return sequence(regex(BLANKS), array)
    return {
        "type": "triggered_tags",
        "triggers": [start],
        "tags": [array],
        "excludes": [*calls.excludes],
        "stop_after_first": True,
    }


def _named_arguments(tool: Tool, markers: Mapping[str, Marker]) -> Format:
    parts: list[Format] = [const(tool.name)]
    if "call_id" in markers:
        parts += [const(markers["call_id"].text), regex("[A-Za-z0-9]{9}")]
    return sequence(*parts, const(markers["arguments"].text), json_schema(schema_of(tool)))


def _llama3(calls: Calls) -> Format:
    options = [_call_object(tool, "parameters") for tool in calls.tools]
    call = either(*options)
    start = calls.markers.get("start")
    if start is not None and start.token_id is not None:
        call = sequence(optional(const(start.text)), call)
    return either(regex(NO_CALL), call) if calls.may_be_text else call


def _call_object(tool: Tool, key: str) -> Format:
    header = rf'{BLANKS}\{{{BLANKS}"name"{BLANKS}:{BLANKS}"{tool.name}"{BLANKS},{BLANKS}"{key}"{BLANKS}:{BLANKS}'
    return sequence(regex(header), json_schema(schema_of(tool)), regex(rf"{BLANKS}\}}{BLANKS}"))


def _tags(tags: list[Format], trigger: str, separator: str, calls: Calls) -> Format:
    """Return tags of which each is a call."""
    if calls.may_be_text:
        return {
            "type": "triggered_tags",
            "triggers": [trigger],
            "tags": tags,
            "excludes": [*calls.excludes],
            "stop_after_first": not calls.parallel,
        }
    return sequence(
        regex(BLANKS),
        {
            "type": "tags_with_separator",
            "tags": tags,
            "separator": separator,
            "at_least_one": True,
            "stop_after_first": not calls.parallel,
        },
    )


def _tag(begin: str, content: Format, end: str) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def sequence(*elements: Format) -> Format:
    """Return the format of parts one after another."""
    return {"type": "sequence", "elements": [*elements]}


def either(*elements: Format) -> Format:
    """Return the format of one of several options."""
    return {"type": "or", "elements": [*elements]}


def optional(content: Format) -> Format:
    """Return the format of a part that may be missing."""
    return {"type": "optional", "content": content}


def const(value: str) -> Format:
    """Return the format of a text."""
    return {"type": "const_string", "value": value}


def regex(pattern: str) -> Format:
    """Return the format of a text that matches."""
    return {"type": "regex", "pattern": pattern}


def json_schema(schema: Mapping[str, Any]) -> Format:
    """Return the format of JSON under a schema."""
    return {"type": "json_schema", "json_schema": schema}


def thought(start: str, end: str) -> Format:
    """Return the format of reasoning, with the white space after it."""
    return sequence(_tag(start, {"type": "any_text"}, end), regex(BLANKS))


def _no_call() -> str:
    """Return an expression for text that does not begin as a call of Llama 3 does, `{"name"`."""
    rest = r"(?s:.)*"
    pattern = ""
    for character, blanks in reversed([("{", True), ('"', True), *((letter, False) for letter in 'name"')]):
        space = r"[ \n\r\t]*" if blanks else ""
        other = rf"[^ \n\r\t{character}]" if blanks else f"[^{character}]"
        follows = rf"\{character}" if character == "{" else character
        pattern = f"{space}(?:{other}{rest}" + (f"|{follows}{pattern})?" if pattern else ")?")
    return pattern


NO_CALL = _no_call()
_FORMATS: Mapping[ToolFormat, Callable[[Calls], Format]] = {
    ToolFormat.HERMES: _hermes,
    ToolFormat.LLAMA3: _llama3,
    ToolFormat.MISTRAL: _mistral,
}
