"""The client's part in a prompt, as far as control tokens are concerned.

Owns the way to find it: the conversation is rendered again with the characters of control tokens replaced in what the
client sent, and the two prompts are compared. Never tokenizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.chat.template_renderer import RenderError
from trident_preprocessing.tokens.control_tokens import ControlTokens, any_of

#: The messages, the tools, and further arguments of the template.
Inputs = tuple[list[dict[str, Any]], Any, dict[str, Any]]
Render = Callable[[Inputs], str]
Change = Callable[[str], str]
_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")
#: First characters of the ranges from which replacements are taken, if they are free.
_FIRST_PRIVATE = (0xF0000, 0x100000, 0xE000)


class ClientText:
    """Finds the spellings of control tokens in which a client has a part.

    Args:
        tokens: the control tokens, which a client's text must not become.
    """

    def __init__(self, tokens: ControlTokens) -> None:
        self._tokens = tokens

    def is_harmless(self, inputs: Inputs) -> bool:
        """Return whether nothing in the inputs can become a control token or a part of one."""
        messages, tools, kwargs = inputs
        sent = ([_said(message) for message in messages], tools, kwargs)
        texts = (self._tokens.has_end(text) or self._tokens.is_within(text) for text in _texts(sent))
        return not any(texts) and not any(self._tokens.has_end(key) for key in _keys(sent))

    def mask(self, render: Render, inputs: Inputs, prompt: str) -> tuple[str, str]:
        """Return the prompt, and the prompt with every spelling in which the client has a part made unrecognizable.

        The first is the given prompt, unless the template itself acts on such a spelling: then it is what the template
        makes of a text that only looks like it. Spellings in an assistant's message that the template removes, as many
        do with reasoning, are an exception: the template acts on them, and none is left.

        Args:
            render: renders the inputs in the way in which the prompt was rendered.
            inputs: what the client sent.
            prompt: the prompt that the template made of the inputs.

        Raises:
            RequestError: the inputs use up every private-use character.
            RenderError: the template refuses a text that only looks like the spelling.
        """
        mask = _Mask(self._tokens, chain([prompt], _texts(inputs), _keys(inputs)))
        for change in (mask.wide, mask.narrow):
            masked = _rendered(render, mask.apply(inputs, change))
            if masked is not None and mask.undo(masked) == prompt:
                return prompt, masked
        masked = self._mask_but_taken_out(render, inputs, mask)
        if masked is not None and mask.undo(masked) == prompt:
            return prompt, masked
        masked = render(mask.apply(inputs, mask.narrow))
        return mask.undo(masked), masked

    def _mask_but_taken_out(self, render: Render, inputs: Inputs, mask: _Mask) -> str | None:
        """Mask all but the spellings that the template removes from assistants' messages; None if there are none."""
        said = (text for message in inputs[0] if message["role"] == "assistant" for text in _texts(_said(message)))
        left = {spelling for text in said for spelling in self._tokens.spelling.findall(text)}
        while left:
            fenced = _rendered(render, mask.apply(inputs, mask.narrow, mask.fencing(left)))
            if fenced is None:
                return None
            survivors = {spelling for spelling in left if mask.is_fenced(spelling, fenced)}
            if not survivors:
                return _rendered(render, mask.apply(inputs, mask.narrow, mask.leaving(left)))
            left -= survivors
        return None


class _Mask:
    """Replaces each character of control tokens by a private-use character of its own.

    Args:
        tokens: the control tokens.
        texts: texts whose characters cannot be replacements.
    """

    def __init__(self, tokens: ControlTokens, texts: Iterable[str]) -> None:
        self._tokens = tokens
        characters = sorted(tokens.characters)
        length = len(characters) + 1
        taken = {ord(found) for text in texts if not text.isascii() for found in _PRIVATE_USE.findall(text)}
        free = (first for first in _FIRST_PRIVATE if taken.isdisjoint(range(first, first + length)))
        first = next(free, None)
        if first is None:
            raise RequestError(tensors.MESSAGES.name, "has too many private-use characters; leave them out")
        self._all = {character: chr(first + index) for index, character in enumerate(characters)}
        self._ends = {character: stand_in for character, stand_in in self._all.items() if character in tokens.ends}
        self._undo = {stand_in: character for character, stand_in in self._all.items()}
        self._fence = chr(first + length - 1)

    def apply(self, inputs: Inputs, change: Change, of_assistants: Change | None = None) -> Inputs:
        """Return the inputs with every text changed and every key masked.

        Args:
            inputs: what the client sent.
            change: changes a text.
            of_assistants: changes a text in an assistant's message; None for `change`.
        """
        messages, tools, kwargs = inputs
        changed = []
        for message in messages:
            in_text = of_assistants if of_assistants and message["role"] == "assistant" else change
            changed.append({**_in_all(message, in_text, self.narrow), "role": message["role"]})
        return changed, _in_all(tools, change, self.narrow), _in_all(kwargs, change, self.narrow)

    def undo(self, masked: str) -> str:
        """Return the text that was masked."""
        return _replaced(masked, self._undo)

    def narrow(self, text: str) -> str:
        """Replace every character that a control token begins or ends with, so that no spelling is left."""
        return _replaced(text, self._ends)

    def wide(self, text: str) -> str:
        """Replace as `narrow` does, and also a piece of a spelling whose rest the template might write."""
        return _replaced(text, self._all if self._tokens.is_within(text) else self._ends)

    def leaving(self, spellings: Collection[str]) -> Change:
        """Return a change that masks as `narrow` does, but leaves these spellings."""
        return self._around(spellings, "")

    def fencing(self, spellings: Collection[str]) -> Change:
        """Return a change that leaves these spellings, each between two characters that no template removes."""
        return self._around(spellings, self._fence)

    def is_fenced(self, spelling: str, text: str) -> bool:
        """Return whether a spelling that `fencing` left is still in the text."""
        return self._fence + spelling in text or spelling + self._fence in text

    def _around(self, spellings: Collection[str], fence: str) -> Change:
        pattern = re.compile(f"({any_of(spellings).pattern})")

        def change(text: str) -> str:
            # Every second piece is one of the spellings.
            pieces = pattern.split(text)
            return fence.join(piece if place % 2 else self.narrow(piece) for place, piece in enumerate(pieces))

        return change


def _replaced(text: str, table: Mapping[str, str]) -> str:
    """Return what `str.translate` does, which takes long for long texts that have few of the characters."""
    for old, new in table.items():
        text = text.replace(old, new)
    return text


def _rendered(render: Render, inputs: Inputs) -> str | None:
    try:
        return render(inputs)
    except RenderError:
        return None


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without its role, which templates write between pieces of control tokens."""
    return {key: value for key, value in message.items() if key != "role"}


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _keys(value: Any) -> Iterator[str]:
    """Yield every key in a JSON value."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _keys(item)


def _in_all(value: Any, in_text: Callable[[str], str], in_key: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return in_text(value)
    if isinstance(value, dict):
        return {in_key(key): _in_all(item, in_text, in_key) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_all(item, in_text, in_key) for item in value]
    return value
