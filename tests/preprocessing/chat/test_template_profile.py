"""The file of what templates take: written, read back, and refused by name where it is not what it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError
from trident_preprocessing.chat.template_profile import (
    ROLES,
    ContentForm,
    NullForm,
    TemplateProfile,
    read_profiles,
    write_profiles,
)

PROFILE = TemplateProfile(
    content={**dict.fromkeys(ROLES, ContentForm.TEXT), "user": ContentForm.EITHER, "tool": ContentForm.PARTS},
    null_content=NullForm.ABSENT,
    empty_is_null=False,
    arguments_as_text=True,
    takes_developer=False,
    written=("<think>", "</think>"),
)


@pytest.mark.parametrize("profiles", [{}, {"default": PROFILE}, {"default": PROFILE, "tool_use": PROFILE}])
def test_template_profile_what_is_written_is_read(profiles: dict[str, TemplateProfile], tmp_path: Path) -> None:
    write_profiles(tmp_path, profiles)
    assert read_profiles(tmp_path) == profiles


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda raw: raw.pop("null_content"), r"default\.null_content: missing"),
        (lambda raw: raw.update(more=1), r"default\.more: unknown"),
        (lambda raw: raw.update(null_content="nil"), r"default\.null_content: must be one of none, absent, empty, not"),
        (lambda raw: raw.update(null_content=[]), r"default\.null_content: must be one of"),
        (lambda raw: raw.update(arguments_as_text="yes"), r"default\.arguments_as_text: must be true or false"),
        (lambda raw: raw.update(takes_developer=1), r"default\.takes_developer: must be true or false"),
        (lambda raw: raw.update(written=[1]), r"default\.written: must be a list of texts"),
        (lambda raw: raw["content"].pop("tool"), r"default\.content\.tool: missing"),
        (lambda raw: raw["content"].update(judge="text"), r"default\.content\.judge: unknown"),
        (lambda raw: raw["content"].update(user="html"), r"default\.content\.user: must be one of text, parts, either"),
        (lambda raw: raw.update(content=[]), r"default\.content: must be an object"),
    ],
)
def test_template_profile_a_file_of_another_trident_is_refused_by_name(
    change: Any, problem: str, tmp_path: Path
) -> None:
    write_profiles(tmp_path, {"default": PROFILE})
    path = tmp_path / layout.TEMPLATE_PROFILES_FILE
    raw = json.loads(path.read_text())
    change(raw["default"])
    path.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=f"{problem}.*; build again$"):
        read_profiles(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"default": 1}', "[" * 100_000])
def test_template_profile_a_file_that_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"chat_templates\.json.*; build again$"):
        read_profiles(tmp_path)
    (tmp_path / layout.TEMPLATE_PROFILES_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"chat_templates\.json.*; build again$"):
        read_profiles(tmp_path)
