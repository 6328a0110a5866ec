"""How a checkpoint writes tool calls and reasoning, found by rendering a conversation that has them.

Owns that conversation, and the signs by which formats are told apart: what the template writes, never the model's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from trident_ensemble.contract.model_card import Marker, Reasoning, ToolFormat
from trident_preprocessing.chat.message_forms import conform
from trident_preprocessing.chat.template_profile import TemplateProfile
from trident_preprocessing.chat.template_renderer import Message, RenderError, TemplateRenderer

#: Words that no template has. A name of nine letters and digits is also an id that Mistral's templates take.
_TOOL, _KEY, _VALUE, _CALL_ID = "tridenttool", "tridentkey", "tridentvalue", "tridentc1"
_THOUGHT, _SAID, _ASKED = "tridentthought", "tridentsaid", "tridentasked"
_ARGUMENTS = {_KEY: _VALUE}


@dataclass(frozen=True)
class OutputMarkers:
    """What a model card says of the output; the fields are the card's.

    Args:
        takes_tools: the chat template writes tools.
        tool_format: how calls are written; None where that is not known.
        tool_markers: the markers of that format, by role.
        reasoning: how reasoning is marked; None if it is not.
    """

    takes_tools: bool = False
    tool_format: ToolFormat | None = None
    tool_markers: Mapping[str, Marker] = field(default_factory=dict)
    reasoning: Reasoning | None = None


def find_markers(
    renderer: TemplateRenderer, profiles: Mapping[str, TemplateProfile], tokenizer: Tokenizer, vocab_size: int
) -> OutputMarkers:
    """Return what the checkpoint's templates show of tool calls and reasoning.

    Args:
        renderer: renders the checkpoint's templates; it may have none.
        profiles: the form of messages that each of them takes, from `probe_profiles`.
        tokenizer: in which markers are one token, or are spelled by several.
        vocab_size: of the network; an id beyond it is no marker's.

    The caller bounds the time that the templates take.
    """
    if not renderer.templates:
        return OutputMarkers()
    added = {
        token.content: token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token_id < vocab_size
    }
    return _Finder(renderer, profiles, added).found()


class _Finder:
    """The search in the templates of one checkpoint."""

    def __init__(
        self, renderer: TemplateRenderer, profiles: Mapping[str, TemplateProfile], added: Mapping[str, int]
    ) -> None:
        self._renderer = renderer
        self._profiles = profiles
        self._added = added

    def found(self) -> OutputMarkers:
        prompts = [prompt for answer in _calling() if (prompt := self._render([answer, _RESULT], _TOOLS))]
        takes_tools = _TOOL in self._render([], _TOOLS)
        tool_format, texts = next(filter(None, map(self._calls, prompts)), (None, {}))
        if tool_format is ToolFormat.LLAMA3 and _PYTHON_TAG in self._added:
            # Its templates write the tag before some calls, and its models before any.
            texts = {"start": _PYTHON_TAG}
        markers = {role: self._marker(text) for role, text in texts.items()}
        return OutputMarkers(takes_tools, tool_format, markers, self._reasoning(prompts))

    def _render(self, after: list[Message], tools: Any = None, **options: Any) -> str:
        """Return the prompt of a question and what came after it; an empty text where the template refuses."""
        try:
            name = self._renderer.choose(has_tools=tools is not None)
            messages = conform([{"role": "user", "content": _ASKED}, *after], self._profiles[name])
            return self._renderer.render(name, messages, tools, **{"add_generation_prompt": False, **options})
        except RenderError:
            return ""

    def _marker(self, text: str) -> Marker:
        return Marker(text, self._added.get(text))

    def _calls(self, prompt: str) -> tuple[ToolFormat, dict[str, str]] | None:
        """Return the format of the call in a prompt, and its markers by role."""
        named = _NAMED_CALL.search(prompt)
        if named is not None:
            texts = {"start": named["start"], "arguments": named["arguments"]}
            return ToolFormat.MISTRAL, texts | ({"call_id": named["call_id"]} if named["call_id"] else {})
        for begin, end, key in _call_objects(prompt):
            before, after = prompt[:begin].rstrip(), prompt[end:].lstrip()
            if key == "parameters":
                return ToolFormat.LLAMA3, {}
            listed = _MARKED.search(before.removesuffix("[").rstrip()) if before.endswith("[") else None
            if listed is not None:
                return ToolFormat.MISTRAL, {"start": listed.group()}
            start, close = _MARKED.search(before), _MARKS.match(after)
            if start is not None and close is not None:
                return ToolFormat.HERMES, {"start": start.group(), "end": close.group()}
        return None

    def _reasoning(self, prompts: list[str]) -> Reasoning | None:
        asked = self._render([], add_generation_prompt=True)
        pair = self._written_pair() or self._mentioned_pair([*prompts, asked])
        if pair is None:
            return None
        start, end = pair
        return Reasoning(self._marker(start), self._marker(end), asked.rstrip().endswith(start))

    def _written_pair(self) -> tuple[str, str] | None:
        """Return the markers around the reasoning of an answer, where the template writes it."""
        for key in ("reasoning_content", "reasoning", "thinking"):
            answer = {"role": "assistant", "content": _SAID, key: _THOUGHT}
            before, found, after = self._render([answer]).partition(_THOUGHT)
            start, end = _MARKED.search(before.rstrip()), _MARKS.match(after.lstrip())
            if found and start is not None and end is not None and start.group() != end.group():
                return start.group(), end.group()
        return None

    def _mentioned_pair(self, prompts: list[str]) -> tuple[str, str] | None:
        """Return the markers of reasoning that the template begins, or takes out of answers."""
        text = "\n".join([*self._renderer.templates.values(), *prompts])
        for found in _THINKING.finditer(text):
            start = found.group()
            end = f"{start[0]}/{start[1:]}"
            if end in text:
                return start, end
        return None


def _calling() -> Iterator[Message]:
    """Yield an answer that calls the tool, in the forms that templates take."""
    call = {"id": _CALL_ID, "type": "function", "function": {"name": _TOOL, "arguments": _ARGUMENTS}}
    yield {"role": "assistant", "content": None, "tool_calls": [call]}
    yield {"role": "assistant", "content": _SAID, "tool_calls": [call]}


_RESULT: Message = {"role": "tool", "tool_call_id": _CALL_ID, "name": _TOOL, "content": "7"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "d",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
        },
    }
]


def _call_objects(prompt: str) -> Iterator[tuple[int, int, str]]:
    """Yield where each JSON object begins and ends that is the call, and its key of the arguments."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", prompt):
        try:
            value, end = decoder.raw_decode(prompt, found.start())
        except ValueError:
            continue
        if not isinstance(value, dict) or value.get("name") != _TOOL:
            continue
        for key in ("arguments", "parameters"):
            if value.get(key) in (_ARGUMENTS, json.dumps(_ARGUMENTS)):
                yield found.start(), end, key


_PYTHON_TAG = "<|python_tag|>"
_MARK = r"(?:<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\])"
_MARKS = re.compile(_MARK)
_MARKED = re.compile(f"{_MARK}$")
_THINKING = re.compile(r"<[^<>\s/]{0,20}(?:think|thought|reason)[^<>\s/]{0,20}>|\[[A-Z_]{0,20}THINK[A-Z_]{0,20}\]")
_NAMED_CALL = re.compile(
    rf"(?P<start>{_MARK})\s*{_TOOL}\s*(?:(?P<call_id>{_MARK})\s*{_CALL_ID}\s*)?(?P<arguments>{_MARK})\s*\{{"
)
