"""The profile of a chat template: what it takes, as found out when the engine is built.

Owns the profile and its file in the engine folder. Never renders a template: `template_probe` makes profiles, and
`message_forms` follows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError

#: Roles of OpenAI's API whose content is probed; any other role takes what the role `user` takes.
ROLES = ("system", "developer", "user", "assistant", "tool")


class ContentForm(str, Enum):
    """The form in which a template takes the content of a message: a text, a list of parts, or either."""

    TEXT = "text"
    PARTS = "parts"
    EITHER = "either"


class NullForm(str, Enum):
    """The content of a message that has tool calls instead: None, no key at all, or an empty text."""

    NONE = "none"
    ABSENT = "absent"
    EMPTY = "empty"


@dataclass(frozen=True)
class TemplateProfile:
    """The facts about what one chat template takes.

    Args:
        content: the form of content, by role.
        null_content: the content of messages with tool calls and nothing else.
        empty_is_null: beside tool calls, an empty text must become `null_content`, or the template leaves the calls
            out.
        arguments_as_text: `function.arguments` of a tool call is taken as JSON text, not as an object.
        takes_developer: the template knows the role `developer`.
        written: added tokens of the tokenizer that the template writes, special or not.
    """

    content: Mapping[str, ContentForm]
    null_content: NullForm
    empty_is_null: bool
    arguments_as_text: bool
    takes_developer: bool
    written: tuple[str, ...]


def write_profiles(engine_folder: Path, profiles: Mapping[str, TemplateProfile]) -> None:
    """Write the profiles of an engine's templates, by the templates' names."""
    raw = {name: asdict(profile) for name, profile in profiles.items()}
    text = json.dumps(raw, indent=2) + "\n"
    (engine_folder / layout.TEMPLATE_PROFILES_FILE).write_text(text, encoding="utf-8")


def read_profiles(engine_folder: Path) -> dict[str, TemplateProfile]:
    """Read the profiles that `write_profiles` wrote.

    Raises:
        ArtifactError: the file is missing or cannot be read, or it has other keys or values than this version of
            Trident writes; names them.
    """
    path = engine_folder / layout.TEMPLATE_PROFILES_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); build again") from None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path}: must be an object; build again")
    return {name: _parse(value, f"{path}: {name}") for name, value in raw.items()}


def _parse(raw: Any, where: str) -> TemplateProfile:
    _check_keys(raw, [field.name for field in fields(TemplateProfile)], where)
    _check_keys(raw["content"], list(ROLES), f"{where}.content")
    for name in ("empty_is_null", "arguments_as_text", "takes_developer"):
        if not isinstance(raw[name], bool):
            raise ArtifactError(f"{where}.{name}: must be true or false, not {raw[name]!r}; build again")
    if not isinstance(raw["written"], list) or not all(isinstance(item, str) for item in raw["written"]):
        raise ArtifactError(f"{where}.written: must be a list of texts; build again")
    return TemplateProfile(
        content={role: _choice(ContentForm, raw["content"][role], f"{where}.content.{role}") for role in ROLES},
        null_content=_choice(NullForm, raw["null_content"], f"{where}.null_content"),
        empty_is_null=raw["empty_is_null"],
        arguments_as_text=raw["arguments_as_text"],
        takes_developer=raw["takes_developer"],
        written=tuple(raw["written"]),
    )


def _check_keys(raw: Any, names: list[str], where: str) -> None:
    if not isinstance(raw, dict):
        raise ArtifactError(f"{where}: must be an object; build again")
    for key in (*raw, *names):
        if (key in raw) != (key in names):
            raise ArtifactError(f"{where}.{key}: {'unknown' if key in raw else 'missing'}; build again")


def _choice(kind: Any, raw: Any, where: str) -> Any:
    try:
        return kind(raw)
    except ValueError:
        choices = ", ".join(item.value for item in kind)
        raise ArtifactError(f"{where}: must be one of {choices}, not {raw!r}; build again") from None
