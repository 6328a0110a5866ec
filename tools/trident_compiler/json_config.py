"""Typed access to a checkpoint's JSON files.

Owns the errors: every value that is missing or of another type is refused by file, key and value. Never interprets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trident_ensemble.errors import CheckpointError


class JsonConfig:
    """A JSON object of a checkpoint.

    Args:
        values: the object.
        where: how errors call it, such as `config.json`.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def read(cls, path: Path) -> JsonConfig:
        """Read a file.

        Raises:
            CheckpointError: missing, unreadable, or no object.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: missing; a checkpoint is a folder as transformers saves it") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: must hold a JSON object")
        return cls(values, path.name)

    def refuse(self, key: str, problem: str) -> CheckpointError:
        """The error that names a key and its value."""
        return CheckpointError(f"{self.where}: {key} = {self.values.get(key)!r}: {problem}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`; without a default it must be there. null counts as absent."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or value < least:
            raise self.refuse(key, f"must be a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.refuse(key, "must be a positive number")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """true or false."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(key, "must be true or false")
        return value

    def section(self, key: str) -> JsonConfig | None:
        """A nested object, if there is one."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "must be an object")
        return JsonConfig(value, f"{self.where}: {key}")
