"""A request's body, read strictly into a typed value.

Owns how what is wrong with a body is said: which code, which path, and which words. Never knows what a field is for.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from trident_gateway.api.unknown_fields import drop_unknown
from trident_gateway.errors import InvalidRequestError

Value = TypeVar("Value", bound=msgspec.Struct)
Plan = TypeVar("Plan")

#: Marks a field that is read and checked, and changes nothing.
NO_EFFECT = msgspec.Meta(extra={"effect": "none"})
#: Fields that a client may list as unknown in one body, where unknown ones are allowed.
_MAX_IGNORED = 64
_UNKNOWN = re.compile(r"Object contains unknown field `")
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_BOUND = re.compile(r"Expected `(\w+)` (>=|<=|<|>|of length|matching|that's)")
_SHOWN_FIELD = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def decode_body(body: bytes, kind: type[Value], *, allow_unknown: bool = False) -> tuple[Value, tuple[str, ...]]:
    """Return the value in a body, and the paths of unknown fields that were left out of it.

    Args:
        body: JSON in UTF-8.
        kind: a struct that forbids unknown fields.
        allow_unknown: leave unknown fields out rather than refuse them.

    Raises:
        InvalidRequestError: the body is not such a value; names the path and says why.
    """
    try:
        return msgspec.json.decode(body, type=kind), ()
    except msgspec.ValidationError as error:
        if not _UNKNOWN.match(str(error)):
            raise _refusal(kind, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None
    return _decode_without(body, kind, max_ignored=_MAX_IGNORED if allow_unknown else 0)


def _decode_without(body: bytes, kind: type[Value], max_ignored: int) -> tuple[Value, tuple[str, ...]]:
    """Return the value in a body that has unknown fields, without these; refuse the first that is one too many."""
    try:
        raw = msgspec.json.decode(body)
        ignored: list[str] = []
        for path, name in drop_unknown(raw, kind):
            if len(ignored) == max_ignored:
                raise _unknown(path, name)
            ignored.append(_joined(path, name))
        return msgspec.convert(raw, kind), tuple(ignored)
    except msgspec.ValidationError as error:
        raise _refusal(kind, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None


def planned(plan: Callable[[], Plan]) -> Plan:
    """Return what is planned for a body.

    Raises:
        InvalidRequestError: the body nests so deeply that it could just be read, and cannot be written again.
    """
    try:
        return plan()
    except RecursionError as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> InvalidRequestError:
    if isinstance(error, RecursionError):
        return InvalidRequestError("The body nests arrays and objects too deeply.", code="invalid_json")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequestError(f"The body is not valid UTF-8: {error.reason}.", code="invalid_json")
    return InvalidRequestError(f"The body is not valid JSON: {_sentence(str(error))}", code="invalid_json")


def _refusal(kind: type[msgspec.Struct], message: str) -> InvalidRequestError:
    text, path = _split(message)
    missing = _MISSING.match(text)
    if missing:
        where = _joined(path, missing.group(1))
        return InvalidRequestError(
            f"Missing required parameter: '{where}'.", code="missing_required_parameter", param=where
        )
    advice = refused_fields(kind).get(path.rpartition(".")[2])
    if advice is not None and text.startswith("Expected `null`"):
        return unsupported(path, advice)
    is_type = text.startswith("Expected `") and not _BOUND.match(text)
    code = "invalid_type" if is_type else "invalid_value"
    name = f"'{path}'" if path else "the body"
    what = "type" if is_type else "value"
    return InvalidRequestError(f"Invalid {what} for {name}: {_sentence(text)}", code=code, param=path or None)


def _unknown(path: str, name: str) -> InvalidRequestError:
    where = _joined(path, name if _SHOWN_FIELD.fullmatch(name) else repr(name[:64]))
    return InvalidRequestError(f"Unknown parameter: '{where}'.", code="unknown_parameter", param=where)


def invalid(param: str, problem: str) -> InvalidRequestError:
    """Return the refusal of a field's value.

    Args:
        param: the field's path.
        problem: a sentence without its subject, such as "must be at most 3."
    """
    return InvalidRequestError(f"Invalid value for '{param}': {problem}", param=param)


def unsupported(param: str, advice: str) -> InvalidRequestError:
    """Return the refusal of a field, or of one of its values, that OpenAI's API has and this one has not."""
    return InvalidRequestError(f"Unsupported parameter: '{param}'. {advice}", code="unsupported_parameter", param=param)


@functools.lru_cache(maxsize=32)
def refused_fields(kind: type[msgspec.Struct]) -> Mapping[str, str]:
    """Return the fields of a struct and of those in it that are known and refused, with what to do instead."""
    advice: dict[str, str] = {}
    for struct in _structs(kind):
        for name, meta in _metas(struct):
            if meta.description:
                advice.setdefault(name, meta.description)
    return advice


def _structs(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Return a struct and all that are reached from it, itself first."""
    found: list[type[msgspec.Struct]] = []
    waiting: list[Any] = [kind]
    while waiting:
        hint = waiting.pop(0)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            if hint not in found:
                found.append(hint)
                waiting += typing.get_type_hints(hint, include_extras=True).values()
        else:
            waiting += typing.get_args(hint)
    return found


def _metas(kind: type[msgspec.Struct]) -> list[tuple[str, msgspec.Meta]]:
    return [
        (name, meta)
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if typing.get_origin(hint) is Annotated
        for meta in typing.get_args(hint)[1:]
        if isinstance(meta, msgspec.Meta)
    ]


def _split(message: str) -> tuple[str, str]:
    """Return a message of msgspec without its path, and the path in OpenAI's spelling."""
    text, at, path = message.rpartition(" - at `")
    if not at:
        return message, ""
    if path.startswith("key` in `"):
        path = path.removeprefix("key` in `")
    return text, path.rstrip("`").removeprefix("$").removeprefix(".")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _sentence(text: str) -> str:
    text = text.removeprefix("JSON is malformed: ")
    return f"{text[:1].lower()}{text[1:300]}."
