"""Random tools whose arguments come to an end, and what is valid for them."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema

from trident_gateway.tool_calls.tools import Tool

Schema = dict[str, Any]


def random_tool(rng: random.Random, number: int) -> Tool:
    """A tool; some have no parameters, some refer to definitions, few need an argument."""
    if rng.random() < 0.1:
        return Tool(f"tool-{number}")
    names = rng.sample(["city", "n", "unit", "tags", "when", "deep", "naïve", 'a"b'], rng.randint(0, 4))
    properties = {name: _value(rng, 2) for name in names}
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    schema["required"] = [name for name in names if rng.random() < 0.7]
    if rng.random() < 0.2:
        schema["$defs"] = {"unit": {"enum": ["m", "km"]}}
        properties["in"] = {"$ref": "#/$defs/unit"}
    return Tool(f"tool_{number}", schema)


def _value(rng: random.Random, depth: int) -> Schema:
    kinds: list[Schema] = [
        {"type": "string", "maxLength": 6},
        {"enum": ["red", "grün", "</tool_call>", 7, None]},
        {"type": "integer", "minimum": -20, "maximum": 500},
        {"type": "boolean"},
        {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z]{2}$"}]},
    ]
    if depth:
        kinds += [
            {"type": "array", "items": _value(rng, depth - 1), "maxItems": 2},
            {
                "type": "object",
                "properties": {"x": _value(rng, depth - 1)},
                "required": ["x"],
                "additionalProperties": False,
            },
        ]
    return rng.choice(kinds)


def is_call(tools: tuple[Tool, ...], name: str, arguments: str) -> bool:
    """Whether a call is of one of the tools, with arguments that are valid for it."""
    tool = next(tool for tool in tools if tool.name == name)
    schema = tool.parameters or {"type": "object", "maxProperties": 0}
    value = json.loads(arguments)
    jsonschema.Draft202012Validator.check_schema(schema)
    return isinstance(value, dict) and jsonschema.Draft202012Validator(schema).is_valid(value)
