"""Typed access to a checkpoint's JSON files.

Owns the errors: every value that is missing or of another type is refused by file, key and value. Never interprets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trident_ensemble.contract.errors import CheckpointError

#: Sizes and counts are int32 throughout.
MOST = 2**31 - 1


def whole_number(value: object) -> int | None:
    """Return the whole number that a JSON value is, `20.0` included; None for anything else."""
    if type(value) is int:
        return value
    return int(value) if type(value) is float and value.is_integer() else None


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

    @classmethod
    def read_optional(cls, path: Path) -> JsonConfig:
        """Read a file that may be missing; it then has no values.

        Raises:
            CheckpointError: unreadable, or no object.
        """
        return cls.read(path) if path.exists() else cls({}, path.name)

    def refuse(self, key: str, problem: str) -> CheckpointError:
        """Return the error that names a key and its value."""
        return CheckpointError(f"{self.where}: {key} = {self.values.get(key)!r}: {problem}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = MOST) -> int:
        """Return a whole number from `least` to `most`; without a default it must be there. null counts as absent.

        A float that is whole (`20.0`) is that number: JSON has one kind of number, and writers differ.
        """
        value = self._value(key, default)
        whole = whole_number(value)
        if whole is None or not least <= whole:
            raise self.refuse(key, f"must be a whole number of at least {least}")
        if whole > most:
            raise self.refuse(key, f"must be at most {most}")
        return whole

    def number(
        self, key: str, default: float | None = None, *, zero: bool = False, most: float = sys.float_info.max
    ) -> float:
        """Return a positive finite number of at most `most`, or zero where `zero` allows it."""
        value = self._value(key, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        # Python's integers have no bound, and one that no float can hold is not finite either.
        if not numeric or not (0 < value <= sys.float_info.max or (zero and value == 0)):
            raise self.refuse(key, "must be zero or a positive number" if zero else "must be a positive number")
        if value > most:
            raise self.refuse(key, f"must be at most {most:g}")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return true or false; 1 and 0 are understood."""
        value = self._value(key, default)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise self.refuse(key, "must be true or false")
        return bool(value)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def section(self, key: str) -> JsonConfig | None:
        """Return a nested object, or None if there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "must be an object")
        return JsonConfig(value, f"{self.where}: {key}")
