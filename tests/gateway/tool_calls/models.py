"""Model cards of every format, whose markers are tokens or are spelled, and answers as such models give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from trident_ensemble.contract.model_card import Marker, ModelCard, Reasoning, ToolFormat
from trident_gateway.tool_calls.answer_events import (
    AnswerEvent,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallStart,
)
from trident_gateway.tool_calls.tools import Tool

_PLAIN = ModelCard("m", 1, 1000, takes_messages=True, takes_tools=True)
_THINK = Reasoning(Marker("<think>", 101), Marker("</think>", 102))

HERMES = replace(
    _PLAIN,
    tool_format=ToolFormat.HERMES,
    tool_markers={"start": Marker("<tool_call>", 1), "end": Marker("</tool_call>", 2)},
)
QWEN3 = replace(HERMES, reasoning=_THINK)
QWQ = replace(HERMES, reasoning=replace(_THINK, starts_in_prompt=True))
SPELLED = replace(
    HERMES,
    tool_markers={"start": Marker("<tool_call>"), "end": Marker("</tool_call>")},
    reasoning=Reasoning(Marker("<think>"), Marker("</think>")),
)
LLAMA = replace(_PLAIN, tool_format=ToolFormat.LLAMA3)
LLAMA_TAGGED = replace(LLAMA, tool_markers={"start": Marker("<|python_tag|>", 3)})
MISTRAL = replace(_PLAIN, tool_format=ToolFormat.MISTRAL, tool_markers={"start": Marker("[TOOL_CALLS]", 4)})
MISTRAL_SPELLED = replace(MISTRAL, tool_markers={"start": Marker("[TOOL_CALLS]")})
MISTRAL_NAMED = replace(MISTRAL, tool_markers={"start": Marker("[TOOL_CALLS]", 4), "arguments": Marker("[ARGS]", 5)})
MISTRAL_WITH_IDS = replace(
    MISTRAL_NAMED, tool_markers={**MISTRAL_NAMED.tool_markers, "call_id": Marker("[CALL_ID]", 6)}
)
CARDS = {
    "hermes": HERMES,
    "qwen3": QWEN3,
    "qwq": QWQ,
    "spelled": SPELLED,
    "llama": LLAMA,
    "llama_tagged": LLAMA_TAGGED,
    "mistral": MISTRAL,
    "mistral_spelled": MISTRAL_SPELLED,
    "mistral_named": MISTRAL_NAMED,
    "mistral_with_ids": MISTRAL_WITH_IDS,
}

WEATHER = Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
TIME = Tool("get-time")
TOOLS = (WEATHER, TIME)


def written(card: ModelCard, name: str, arguments: str, *, is_first: bool = True, is_last: bool = True) -> str:
    """A call as a model of this card writes it."""
    if card.tool_format is ToolFormat.HERMES:
        call = f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
        return call if is_last else f"{call}\n"
    if card.tool_format is ToolFormat.LLAMA3:
        tag = "<|python_tag|>" if card.tool_markers else ""
        return f'{tag}{{"name": "{name}", "parameters": {arguments}}}'
    if "arguments" in card.tool_markers:
        call_id = "[CALL_ID]abcdef123" if "call_id" in card.tool_markers else ""
        return f"[TOOL_CALLS]{name}{call_id}[ARGS]{arguments}"
    begin = "[TOOL_CALLS] [" if is_first else ", "
    return f'{begin}{{"name": "{name}", "arguments": {arguments}}}' + ("]" if is_last else "")


def tokens_of(card: ModelCard) -> dict[str, int]:
    """The markers of a card that are one token."""
    reasoning = (card.reasoning.start, card.reasoning.end) if card.reasoning else ()
    markers = (*card.tool_markers.values(), *reasoning)
    return {marker.text: marker.token_id for marker in markers if marker.token_id is not None}


def pieces(card: ModelCard, answer: str, cuts: Sequence[int] = ()) -> list[tuple[str, list[tuple[int, int]]]]:
    """An answer as the ensemble gives it: texts without markers, and where these stood, cut at some characters."""
    tokens = tokens_of(card)
    spelled = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
    text, markers, place = "", [], 0
    for found in spelled.finditer(answer):
        text += answer[place : found.start()]
        markers.append((len(text), tokens[found.group()]))
        place = found.end()
    text += answer[place:]
    borders = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    parts = []
    for begin, end in zip(borders, borders[1:] or [0], strict=False):
        is_last = end == len(text)
        here = [(at - begin, token) for at, token in markers if begin <= at < end or (is_last and at == end)]
        parts.append((text[begin:end], here))
    return parts


def joined(events: Sequence[AnswerEvent]) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, reasoning, and the calls' names and arguments; every event must be in its place."""
    content, reasoning = "", ""
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, ContentDelta):
            assert event.text
            content += event.text
        elif isinstance(event, ReasoningDelta):
            assert event.text
            reasoning += event.text
        elif isinstance(event, ToolCallStart):
            assert event.index == len(calls)
            calls.append((event.name, ""))
        else:
            assert isinstance(event, ToolCallDelta)
            assert event.arguments
            assert event.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + event.arguments)
    return content, reasoning, calls
