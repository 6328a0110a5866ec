"""The file of an engine of our own kernels, `program.json`.

Owns its writing, its reading and the types of its fields. Never opens another file of the engine, and never launches
anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from trident_backend.engine.cuda.program_names import check_names
from trident_backend.engine.gpu.program import (
    Program,
)
from trident_ensemble.contract.errors import ArtifactError

PROGRAM_FILE = "program.json"
#: The format of the file, and of all that the host and the machine code of an engine's kernels agree on: parameters by
#: name and type, the columns of attention's items and merges, the geometry of block copies, the layouts of the KV cache
#: and of sampling's operands. Whoever changes one of them changes this number: an engine of another one must be built
#: again.
FORMAT_VERSION = 1
#: Whole numbers are less than this.
_LIMIT = 2**63


@dataclass(frozen=True)
class _File:
    """The contents of the file."""

    format_version: int
    program: Program


def write_program(folder: Path, program: Program) -> None:
    """Write `program.json` into an engine folder.

    Raises:
        ArtifactError: the program does not hold together; names the field.
    """
    check_names(program)
    text = json.dumps(asdict(_File(FORMAT_VERSION, program)), separators=(",", ":"), allow_nan=False)
    (folder / PROGRAM_FILE).write_text(text + "\n", encoding="utf-8")


def read_program(folder: Path) -> Program:
    """Read and check the program of an engine.

    Raises:
        ArtifactError: missing, unreadable, of another format, or a field is not what it should be; names the field.
    """
    path = folder / PROGRAM_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: build the engine again") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(f"format_version: this Trident reads {FORMAT_VERSION}, not {version!r}; build again")
    file: _File = _part(_File, raw, PROGRAM_FILE)
    check_names(file.program)
    return file.program


def _part(kind: Any, raw: Any, where: str) -> Any:
    """Build one frozen part from JSON; refuse unknown, missing and mistyped fields by name."""
    if not isinstance(raw, Mapping):
        raise ArtifactError(f"{where}: must be an object")
    hints = _types(kind)
    if unknown := [key for key in raw if key not in hints]:
        raise ArtifactError(f"{where}.{unknown[0]}: unknown field")
    if missing := [name for name in hints if name not in raw]:
        raise ArtifactError(f"{where}.{missing[0]}: missing")
    return kind(**{name: _value(hint, raw[name], f"{where}.{name}") for name, hint in hints.items()})


@cache
def _types(kind: Any) -> Mapping[str, Any]:
    """Return the types of the fields of a part; a large program has many parts."""
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _value(hint: Any, raw: Any, where: str) -> Any:
    origin = get_origin(hint)
    if is_dataclass(hint):
        return _part(hint, raw, where)
    if origin is tuple:
        return _tuple(get_args(hint), raw, where)
    if origin is Mapping:
        if not isinstance(raw, Mapping):
            raise ArtifactError(f"{where}: must be an object")
        return {key: _value(get_args(hint)[1], item, f"{where}.{key}") for key, item in raw.items()}
    if isinstance(hint, UnionType):
        return _either(get_args(hint), raw, where)
    return _scalar(hint, raw, where)


def _tuple(kinds: tuple[Any, ...], raw: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise ArtifactError(f"{where}: must be a list")
    each = (kinds[0],) * len(raw) if kinds[-1] is Ellipsis else kinds
    if len(each) != len(raw):
        raise ArtifactError(f"{where}: must have {len(each)} items, not {len(raw)}")
    return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(each, raw, strict=True)))


def _either(kinds: tuple[Any, ...], raw: Any, where: str) -> Any:
    """Return one of several kinds of parts, known by their fields, or a number or bool as it stands."""
    if not is_dataclass(kinds[0]):
        if isinstance(raw, bool) or _is_number(raw):
            return raw
        raise ArtifactError(f"{where}: {raw!r} is not a number")
    own = [kind for kind in kinds if isinstance(raw, Mapping) and fields(kind)[0].name in raw]
    if len(own) != 1:
        first = " or ".join(fields(kind)[0].name for kind in kinds)
        raise ArtifactError(f"{where}: must be an object with the field {first}")
    return _part(own[0], raw, where)


def _scalar(hint: Any, raw: Any, where: str) -> Any:
    if hint is float and _is_number(raw):
        return float(raw)
    if hint is int and isinstance(raw, int) and _is_number(raw) and raw >= 0:
        return raw
    if hint is str and isinstance(raw, str):
        return raw
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [member.value for member in hint]
        if isinstance(raw, str) and raw in choices:
            return hint(raw)
        raise ArtifactError(f"{where}: {raw!r} is not one of {', '.join(choices)}")
    raise ArtifactError(f"{where}: {raw!r} is not a valid {getattr(hint, '__name__', hint)}")


def _is_number(raw: Any) -> bool:
    if isinstance(raw, float):
        return math.isfinite(raw)
    return isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < _LIMIT
