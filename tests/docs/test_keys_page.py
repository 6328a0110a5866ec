"""The page of keys: its commands, options and files are understood as they stand there."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from trident_gateway.access.tokens import read_plans
from trident_tools import gateway, keys

_PAGE = (Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8")
_BLOCKS = dict(re.findall(r"^```(\w*)\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL))
_TEXT = _PAGE.replace("\\\n", " ")


def _parser(module: object) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return parser


@pytest.mark.parametrize("line", re.findall(r"^trident (keys .*?)(?: #.*)?$", _TEXT, re.MULTILINE))
def test_the_commands_of_keys_are_understood(line: str) -> None:
    _parser(keys).parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("line", re.findall(r"^trident (gateway .*?)$", _TEXT, re.MULTILINE))
def test_the_commands_of_the_gateway_are_understood(line: str) -> None:
    _parser(gateway).parse_args(shlex.split(line)[1:])


def test_every_option_of_create_is_on_the_page_and_no_other() -> None:
    create = next(action for action in _parser(keys)._actions if isinstance(action, argparse._SubParsersAction))
    options = {option for action in create.choices["create"]._actions for option in action.option_strings}
    section = _PAGE.split("| option of `create`")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE)) == options - {"-h", "--help", "--keys"}


def test_the_settings_of_plans_are_options() -> None:
    rows = [row.split(" | ", 1)[1] for row in _PAGE.split("## From a plan")[1].splitlines() if row.startswith("| ")]
    for code in [code for row in rows for code in re.findall(r"`(--[^`]*)`", row) if " " in code and "jwt" not in code]:
        _parser(keys).parse_args(["create", "--keys", "f", "--tenant", "t", *shlex.split(code)])


def test_the_file_of_plans_is_understood(tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text(_BLOCKS["json"])
    assert set(read_plans(tmp_path / "plans.json")) == {"default", "paid"}
