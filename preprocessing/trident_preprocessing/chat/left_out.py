"""The refusal of conversations of which a chat template leaves something out.

Owns which fields of a message and of a tool must reach the prompt, and the way to find out: a word that no text has is
added to each field, and the prompt is searched for these words. Never looks at what a field says, so a text that a
template trims, escapes or takes reasoning out of counts as having reached the prompt.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.chat.template_renderer import RenderError

Message = dict[str, Any]
Render = Callable[[list[Message], Any], str]
#: Only letters and digits, which no escaping changes.
_WORD = f"q{secrets.token_hex(6)}w"
_FOUND = re.compile(rf"{_WORD}(\d{{6}})z")
#: Fields of a message that need not be in the prompt. Names and ids only identify, reasoning of earlier turns is left
#: out on purpose, annotations are about a text that is there, and cache_control is for other servers' caches.
_UNCHECKED = frozenset({
    "role", "name", "tool_call_id", "id", "reasoning_content", "reasoning", "thinking", "annotations", "cache_control",
})  # fmt: skip
#: Keywords that the schema of a function without parameters may have.
_OF_NO_PARAMETERS = frozenset({
    "type", "properties", "required", "additionalProperties", "title", "description", "$schema",
})  # fmt: skip


Path = tuple[str | int, ...]


@dataclass(frozen=True)
class _Place:
    """The location of one value in a request: its input, and the keys that lead to it."""

    field: str
    path: Path

    def find(self, messages: list[Message], tools: Any) -> tuple[Any, Any]:
        """Return the container of the value, and its key there."""
        owner: Any = messages if self.field == tensors.MESSAGES.name else tools
        for key in self.path[:-1]:
            owner = owner[key]
        return owner, self.path[-1]


def refuse_left_out(render: Render, messages: list[Message], tools: Any, prompt: str, roles: list[str]) -> None:
    """Refuse a conversation of which the template leaves something out.

    Args:
        render: renders messages and tools in the way in which the prompt was rendered.
        messages: the messages that the template was given.
        tools: the tools that the template was given, or None.
        prompt: the prompt that the template made of these.
        roles: the roles of the messages as the client sent them.

    Raises:
        RequestError: a value does not reach the prompt; names the first one and the role of its message.
    """
    conversation = _Conversation(render, messages, tools)
    missing = list(_places(messages, tools))
    for behind in (True, False):
        missing = conversation.missing(missing, behind=behind)
    for place in missing:
        # Tried alone, because words in other fields may have led the template elsewhere.
        if not conversation.missing([place], behind=True) or not conversation.missing([place], behind=False):
            continue
        # A field other than content may have its effect by being compared.
        if "content" in place.path or conversation.without(place) == prompt:
            raise RequestError(place.field, _problem(place, roles))


class _Conversation:
    """A conversation that is rendered with changes."""

    def __init__(self, render: Render, messages: list[Message], tools: Any) -> None:
        self._render = render
        self._messages = messages
        self._tools = tools

    def missing(self, places: list[_Place], *, behind: bool) -> list[_Place]:
        """Return the values whose word is not in the prompt; the word is put after each value, or before it."""

        def mark(number: int, value: Any) -> Any:
            word = f"{_WORD}{number:06d}z"
            if isinstance(value, dict):
                return {**value, word: word} if behind else {word: word, **value}
            return f"{value}{word}" if behind else f"{word}{value}"

        if not places:
            return []
        prompt = self._changed(places, mark)
        found = {int(number) for number in _FOUND.findall(prompt.casefold())}
        return [place for number, place in enumerate(places) if number not in found]

    def without(self, place: _Place) -> str:
        """Return the prompt of the conversation without one of its values."""
        return self._changed([place], lambda _, value: {} if isinstance(value, dict) else None)

    def _changed(self, places: list[_Place], change: Callable[[int, Any], Any]) -> str:
        messages, tools = copy.deepcopy((self._messages, self._tools))
        for number, place in enumerate(places):
            owner, key = place.find(messages, tools)
            owner[key] = change(number, owner[key])
        try:
            return self._render(messages, tools)
        except RenderError:
            return ""


def _places(messages: list[Message], tools: Any) -> Iterator[_Place]:
    for index, message in enumerate(messages):
        for path in _message_paths(message):
            yield _Place(tensors.MESSAGES.name, (index, *path))
    for index, tool in enumerate(tools or ()):
        for path in _function_paths(tool, ("name", "description", "parameters")):
            yield _Place(tensors.TOOLS.name, (index, *path))


def _message_paths(message: Message) -> Iterator[Path]:
    for key, value in message.items():
        if key in _UNCHECKED or _says_nothing(value):
            continue
        if key == "content" and isinstance(value, list):
            yield from ((key, number, "text") for number, part in enumerate(value) if not _says_nothing(part["text"]))
        elif key == "tool_calls":
            for number, call in enumerate(value):
                yield from ((key, number, *path) for path in _function_paths(call, ("name", "arguments")))
        else:
            yield (key,)


def _function_paths(holder: dict[str, Any], names: tuple[str, ...]) -> Iterator[Path]:
    """Yield the paths within a call or a tool, which may hold the fields of its function itself."""
    within = ("function",) if isinstance(holder.get("function"), dict) else ()
    function = holder["function"] if within else holder
    for name in names:
        value = function.get(name)
        if name == "parameters" and isinstance(value, dict) and isinstance(value.get("properties"), dict | None):
            # A template may leave out a schema without parameters, which says nothing.
            if value.get("properties"):
                yield (*within, name, "properties")
            elif value.keys() - _OF_NO_PARAMETERS:
                yield (*within, name)
        elif not _says_nothing(value):
            yield (*within, name)


def _says_nothing(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else not value


def _problem(place: _Place, roles: list[str]) -> str:
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place.path)
    if place.field == tensors.MESSAGES.name:
        return f"{shown}: the checkpoint's chat template leaves it out (role {roles[int(place.path[0])]!r})"
    if place.path[-1] == "name":
        return f"the checkpoint's chat template does not take tools; leave them out ({shown})"
    return f"{shown}: the checkpoint's chat template leaves it out"
