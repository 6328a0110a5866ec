"""The facts about the fields of bodies that tests hold the tables to."""

from __future__ import annotations

import typing

import msgspec

from trident_gateway.api.body import NO_EFFECT


def fields_without_effect(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Return the fields of a struct that are accepted and change nothing."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return frozenset(name for name, hint in hints.items() if NO_EFFECT in typing.get_args(hint)[1:])
