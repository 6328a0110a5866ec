"""What a client of a served model must know of it, as `trident build` found it out.

Owns the card and its JSON, which stands in the configuration of the ensemble under one parameter, so that whoever can
reach the server can read it. Never finds anything out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any

from trident_ensemble.contract.errors import ConfigError

#: The parameter of the ensemble's config.pbtxt that holds the card.
PARAMETER = "model_card"
#: The keys whose values JSON holds as they are.
_SCALARS = {"created": int, "max_seq_len": int, "digest": str, "takes_messages": bool, "takes_tools": bool}
_SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class ToolFormat(str, Enum):
    """The ways in which models write tool calls."""

    #: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, as Hermes and Qwen have it.
    HERMES = "hermes"
    #: `{"name": ..., "parameters": ...}`, with or without `<|python_tag|>`, as Llama 3 has it.
    LLAMA3 = "llama3"
    #: `[TOOL_CALLS][{"name": ..., "arguments": ...}]`, as Mistral has it.
    MISTRAL = "mistral"


@dataclass(frozen=True)
class Marker:
    """A text that has a meaning in the output.

    Args:
        text: how it is written.
        token_id: the one token that it is; None where it is spelled by ordinary tokens.
    """

    text: str
    token_id: int | None = None


@dataclass(frozen=True)
class Reasoning:
    """The way in which a model marks its reasoning.

    Args:
        start: begins it.
        end: ends it.
        starts_in_prompt: the chat template has written `start` where the answer begins.
    """

    start: Marker
    end: Marker
    starts_in_prompt: bool = False


@dataclass(frozen=True)
class ModelCard:
    """The facts about one served model.

    Args:
        name: by which clients ask for it.
        created: when it was built, in seconds since 1970; it is shown to clients and decides nothing.
        max_seq_len: tokens of prompt and output together.
        digest: of the tokenizer and the chat template; equal digests make equal prompts of equal requests.
        aliases: further names.
        takes_messages: it has a chat template.
        takes_tools: the chat template writes tools.
        tool_format: how it calls them; None where that is not known.
        tool_markers: the markers of that format, by role: `start`; `end`, `arguments` and `call_id` if any.
        reasoning: how it marks its reasoning; None if it does not.
    """

    name: str
    created: int
    max_seq_len: int
    digest: str = ""
    aliases: tuple[str, ...] = ()
    takes_messages: bool = False
    takes_tools: bool = False
    tool_format: ToolFormat | None = None
    tool_markers: Mapping[str, Marker] = field(default_factory=dict)
    reasoning: Reasoning | None = None


def check_served_name(name: object, where: str) -> None:
    """Refuse a text by which no client could ask for a model.

    Args:
        name: the text.
        where: what the name stands in, for the message: an option or a key.

    Raises:
        ConfigError: says what a name may hold.
    """
    if not isinstance(name, str) or not _SERVED_NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {name!r} is not a name; it must begin with a letter or digit, go on with letters, digits and "
            "._:/- and have at most 128 characters"
        )


def render_card(card: ModelCard) -> str:
    """Return a card as JSON on one line."""
    return json.dumps(asdict(card), ensure_ascii=False, sort_keys=True)


def parse_card(text: str) -> ModelCard:
    """Read a card that `render_card` wrote.

    Raises:
        ConfigError: it is not one; names the key.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{PARAMETER}: is not JSON: {error}") from None
    values = _checked(ModelCard, raw, PARAMETER)
    try:
        for name in (values.get("name"), *values.get("aliases", ())):
            check_served_name(name, f"{PARAMETER}.name")
        for key, kind in _SCALARS.items():
            if type(values.get(key, kind())) is not kind:
                raise _malformed(f"{PARAMETER}.{key}")
        reasoning = values.get("reasoning")
        return ModelCard(
            **{
                **values,
                "aliases": tuple(values.get("aliases", ())),
                "tool_format": None if values.get("tool_format") is None else ToolFormat(values["tool_format"]),
                "tool_markers": {
                    role: _marker(marker, f"{PARAMETER}.tool_markers.{role}")
                    for role, marker in values.get("tool_markers", {}).items()
                },
                "reasoning": None if reasoning is None else _reasoning(reasoning),
            }
        )
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"{PARAMETER}: {error}; build again") from None


def _reasoning(raw: Any) -> Reasoning:
    where = f"{PARAMETER}.reasoning"
    values = _checked(Reasoning, raw, where)
    return Reasoning(
        _marker(values["start"], f"{where}.start"),
        _marker(values["end"], f"{where}.end"),
        bool(values.get("starts_in_prompt", False)),
    )


def _marker(raw: Any, where: str) -> Marker:
    marker = Marker(**_checked(Marker, raw, where))
    if not isinstance(marker.text, str) or not isinstance(marker.token_id, int | None):
        raise _malformed(where)
    return marker


def _malformed(where: str) -> ConfigError:
    return ConfigError(f"{where}: malformed; build again")


def _checked(kind: Any, raw: Any, where: str) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    if not isinstance(raw, dict) or not raw.keys() <= names:
        unknown = sorted(set(raw) - names)[:1] if isinstance(raw, dict) else []
        raise ConfigError(f"{where}{''.join(f'.{key}' for key in unknown)}: unknown or malformed; build again")
    return raw
