"""The tools that a request offers, and which of them it wants called.

Owns the checks of names, numbers and schemas' outer form. Never reads what is inside a schema: the core does that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from trident_gateway.errors import InvalidRequestError

MAX_TOOLS = 128
#: Every name of a tool, and nothing else.
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Args:
        name: by which it is called.
        parameters: the JSON schema of its arguments, an object; None for a function without any.
    """

    name: str
    parameters: Mapping[str, Any] | None = None


class Choice(str, Enum):
    """Whether an answer may be, or must be, calls of tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    #: Exactly one call, of the one tool that is named.
    NAMED = "named"


@dataclass(frozen=True)
class ToolChoice:
    """The choice of a request.

    Args:
        choice: the kind.
        name: the tool's name with `NAMED`, else empty.
        param: the field that errors about it name.
    """

    choice: Choice = Choice.AUTO
    name: str = ""
    param: str = "tool_choice"


def check_tools(tools: Sequence[Tool], choice: ToolChoice, param: str = "tools[{}].function") -> None:
    """Refuse tools that cannot be offered, and a choice that they do not allow.

    Args:
        tools: the tools, in the order of the request.
        choice: what the request wants called.
        param: the path of a tool's fields; its braces become the tool's index.

    Raises:
        InvalidRequestError: names the field.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"There are {len(tools)} tools; at most {MAX_TOOLS} may be offered.", param="tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"{param.format(index)}.name"
        if not NAME_PATTERN.fullmatch(tool.name):
            raise InvalidRequestError(
                f"Invalid '{where}': a name has 1 to 64 letters, digits, underscores and hyphens.", param=where
            )
        if tool.name in names:
            raise InvalidRequestError(f"Invalid '{where}': an earlier tool has the same name.", param=where)
        names.add(tool.name)
        _check_parameters(tool.parameters, f"{param.format(index)}.parameters")
    if choice.choice is Choice.NAMED and choice.name not in names:
        raise InvalidRequestError(f"Invalid '{choice.param}': no tool in 'tools' has this name.", param=choice.param)
    if choice.choice is Choice.REQUIRED and not tools:
        raise InvalidRequestError(
            f"Invalid '{choice.param}': a call is required, but 'tools' has none.", param=choice.param
        )


def _check_parameters(parameters: Mapping[str, Any] | None, where: str) -> None:
    if parameters is not None and parameters.get("type", "object") != "object":
        raise InvalidRequestError(
            f"Invalid '{where}': arguments are an object, so the schema's type must be \"object\".",
            code="invalid_json_schema",
            param=where,
        )
