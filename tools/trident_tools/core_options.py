"""The core's serving parameters as options of a command.

Owns the translation between `CoreSettings` and a command line: each setting there is an option here. Never says what a
setting means: its declaration does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container
from dataclasses import Field, fields, replace
from enum import Enum
from typing import Any

from trident_ensemble.contract.settings import CoreSettings, parse_value, render_value


def add_core_options(parser: argparse.ArgumentParser, *, leave_out: Container[str] = ()) -> None:
    """Declare an option for each of the core's settings, without a default, so that what is not given stays as it is.

    Args:
        parser: the command's parser.
        leave_out: names of settings that the command has no use for.
    """
    group = parser.add_argument_group("serving")
    for known in fields(CoreSettings):
        if known.name in leave_out:
            continue
        default = render_value(known.default)
        group.add_argument(
            _option(known),
            dest=_destination(known),
            type=_parser(known),
            metavar=_metavar(known),
            help=f"{known.metadata['doc']} (default: {default or 'none'})".replace("%", "%%"),
        )


def core_settings(args: argparse.Namespace, base: CoreSettings | None = None) -> CoreSettings:
    """Return the settings that were given; the others are those of `base`, or the defaults."""
    asked = {known.name: getattr(args, _destination(known), None) for known in fields(CoreSettings)}
    return replace(base or CoreSettings(), **{name: value for name, value in asked.items() if value is not None})


def asks_for_settings(args: argparse.Namespace) -> bool:
    """Return whether any of the options was given."""
    return any(getattr(args, _destination(known)) is not None for known in fields(CoreSettings))


def _option(known: Field[Any]) -> str:
    return "--" + known.name.replace("_", "-")


def _destination(known: Field[Any]) -> str:
    return f"core_{known.name}"


def _metavar(known: Field[Any]) -> str:
    if isinstance(known.default, Enum):
        return "|".join(choice.value for choice in type(known.default))
    if isinstance(known.default, bool):
        return "true|false"
    metavar: str = known.metadata["metavar"]
    return metavar


def _parser(known: Field[Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return parse_value(known, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
