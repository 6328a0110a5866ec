"""The frame of a client's script: its conversations by name, and what became of each, as JSON.

A script is run by an interpreter that has the client, with the gateway's base, a key, a second key that is used up, and
the model's name. Owns that. Never judges: the tests do.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gateway:
    """Where to ask, and as whom."""

    base: str
    key: str
    spent_key: str
    model: str


Case = Callable[[Gateway], Any]
CASES: dict[str, Case] = {}

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "enum": ["Athens", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}
OTHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ada", "Eve"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
PLAIN = [{"role": "user", "content": "Tell me about the ferry."}]
WEATHER = [{"role": "user", "content": "What is the weather in Athens?"}]


def case(function: Case) -> Case:
    """Register a conversation under the name of its function."""
    CASES[function.__name__] = function
    return function


def outcome_of_error(error: Exception) -> dict[str, Any]:
    """Return what a client tells of an error, as far as it has these attributes."""
    told = {name: getattr(error, name, None) for name in ("status_code", "code", "param", "type", "request_id")}
    return {"error": type(error).__name__, "bases": [base.__name__ for base in type(error).__mro__], **told}


def run() -> None:
    """Run all conversations, and print what came of each."""
    gateway = Gateway(*sys.argv[1:5])
    chosen = sys.argv[5:] or list(CASES)
    outcomes: dict[str, Any] = {}
    for name in chosen:
        try:
            outcomes[name] = CASES[name](gateway)
        except Exception as error:
            outcomes[name] = {**outcome_of_error(error), "traceback": traceback.format_exc()}
    # Some clients print by themselves.
    print("\n" + json.dumps(outcomes))
