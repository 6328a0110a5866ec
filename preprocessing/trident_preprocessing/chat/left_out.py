"""What a chat template leaves out of a conversation.

Owns which fields of a message and of a tool must reach the prompt, and how that is found out: a word that no text has
is added to each of them, and the prompt is looked through for these words. Never looks at what a field says, so texts
that a template trims, escapes or takes reasoning out of have reached the prompt all the same.
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
#: Letters and digits alone, which no escaping touches.
_WORD = f"q{secrets.token_hex(6)}w"
_FOUND = re.compile(rf"{_WORD}(\d{{6}})z")
#: Of a message, what need not be in the prompt. Names and ids say who and which, reasoning of earlier turns is left out
#: on purpose, annotations are about a text that is there, and cache_control is about other servers' caches.
_UNCHECKED = frozenset({
    "role", "name", "tool_call_id", "id", "reasoning_content", "reasoning", "thinking", "annotations", "cache_control",
})  # fmt: skip
#: What schemas of functions without parameters are made of.
_OF_NO_PARAMETERS = frozenset({
    "type", "properties", "required", "additionalProperties", "title", "description", "$schema",
})  # fmt: skip


Path = tuple[str | int, ...]


@dataclass(frozen=True)
class _Place:
    """One value of a request: the input it is in, and the keys that lead to it."""

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
        render: renders messages and tools as the prompt was rendered.
        messages: as the template gets them.
        tools: as the template gets them; None for none.
        prompt: what the template makes of these.
        roles: of the messages, as the client sent them.

    Raises:
        RequestError: names the first value that does not reach the prompt, and its message's role.
    """
    conversation = _Conversation(render, messages, tools)
    missing = list(_places(messages, tools))
    for behind in (True, False):
        missing = conversation.missing(missing, behind=behind)
    for place in missing:
        # Alone: words in other places may have led the template elsewhere.
        if not conversation.missing([place], behind=True) or not conversation.missing([place], behind=False):
            continue
        # What is no content may be there to be compared, and has its effect in that way.
        if "content" in place.path or conversation.without(place) == prompt:
            raise RequestError(place.field, _problem(place, roles))


class _Conversation:
    """One that is rendered with changes."""

    def __init__(self, render: Render, messages: list[Message], tools: Any) -> None:
        self._render = render
        self._messages = messages
        self._tools = tools

    def missing(self, places: list[_Place], *, behind: bool) -> list[_Place]:
        """Return the places whose word is not in the prompt; the word is put behind what is there, or before it."""

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
        """Return the prompt if there were nothing in the place."""
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
    """Of a call or a tool, which may hold its function's fields itself."""
    within = ("function",) if isinstance(holder.get("function"), dict) else ()
    function = holder["function"] if within else holder
    for name in names:
        value = function.get(name)
        if name == "parameters" and isinstance(value, dict) and isinstance(value.get("properties"), dict | None):
            # A schema without parameters says nothing, and templates may say nothing of it.
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
        return f"the checkpoint's chat template takes no tools; leave them out ({shown})"
    return f"{shown}: the checkpoint's chat template leaves it out"
