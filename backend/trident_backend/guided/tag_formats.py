"""Structural tags, xgrammar's JSON for text with parts that must look like something, read into a few kinds of nodes.

Owns the formats' names and fields, and their bounds. Never knows a token, and never writes a grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trident_backend.guided.json_schemas import CheckedSchema, SchemaError
from trident_backend.guided.schema_paths import ROOT, SchemaPath
from trident_backend.guided.tag_nodes import (
    AnyText,
    Either,
    Json,
    Literal,
    Node,
    Pattern,
    Run,
    Separated,
    Tagged,
    Triggered,
)


class TagFormatError(Exception):
    """A format that cannot be followed; the message says where and why."""


def parse_structural_tag(value: Any) -> Node:
    """Read a structural tag, in xgrammar's present form or its first one (`structures` and `triggers`).

    Args:
        value: the JSON; schemas in it are changed in place.

    Raises:
        TagFormatError: something is wrong; the message begins with its JSON pointer.
    """
    if not isinstance(value, dict) or value.get("type") != "structural_tag":
        raise TagFormatError(f'{ROOT}: must be an object with "type": "structural_tag"')
    reader = _Reader()
    try:
        if "structures" in value:
            return reader.first_form(value)
        _known(value, ROOT, {"type", "format"})
        return reader.node(value.get("format"), ROOT / "format", _MAX_DEPTH)
    except SchemaError as error:
        raise TagFormatError(str(error)) from None


class _Reader:
    """Reads one structural tag, and counts its formats and the bytes of their texts."""

    def __init__(self) -> None:
        self._num_nodes = 0
        self._num_bytes = 0
        self._kinds: Mapping[str, Callable[[dict[str, Any], SchemaPath, int], Node]] = {
            "any_text": self._any_text,
            "const_string": self._const_string,
            "json_schema": self._json_schema,
            "regex": self._regex,
            "sequence": self._sequence,
            "or": self._or,
            "optional": self._optional,
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }

    def node(self, value: Any, path: SchemaPath, depth: int) -> Node:
        """Read one format; `depth` is how many levels there may be from here."""
        self._count(path)
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in self._kinds:
            raise TagFormatError(f"{path}: must be an object whose type is one of {', '.join(self._kinds)}")
        if depth == 0:
            raise TagFormatError(f"{path}: is nested too deeply: at most {_MAX_DEPTH} levels")
        return self._kinds[kind](value, path, depth - 1)

    def first_form(self, value: dict[str, Any]) -> Node:
        """Read `{"structures": [{"begin", "schema", "end"}], "triggers": [...]}`."""
        _known(value, ROOT, {"type", "structures", "triggers"})
        tags = []
        for path, entry in _list(value, ROOT, "structures"):
            self._count(path)
            if not isinstance(entry, dict):
                raise TagFormatError(f"{path}: must be an object with begin, schema and end")
            _known(entry, path, {"begin", "schema", "end"})
            content = _schema(entry, path, "schema")
            tags.append(Tagged(self._text(entry, path, "begin"), content, self._text(entry, path, "end"), path))
        return Triggered(self._triggers(value, ROOT), tuple(tags), (), False, False, ROOT)

    def _count(self, path: SchemaPath) -> None:
        self._num_nodes += 1
        if self._num_nodes > _MAX_NODES:
            raise TagFormatError(f"{path}: there are too many formats: at most {_MAX_NODES}")

    def _any_text(self, value: dict[str, Any], path: SchemaPath, _depth: int) -> Node:
        _known(value, path, {"type", "excludes"})
        return AnyText(self._texts(value, path, "excludes"), path)

    def _const_string(self, value: dict[str, Any], path: SchemaPath, _depth: int) -> Node:
        _known(value, path, {"type", "value"})
        return Literal(self._text(value, path, "value"))

    def _json_schema(self, value: dict[str, Any], path: SchemaPath, _depth: int) -> Node:
        _known(value, path, {"type", "json_schema", "style"})
        if value.get("style", "json") != "json":
            raise TagFormatError(f"{path / 'style'}: only json is known")
        return _schema(value, path, "json_schema")

    def _regex(self, value: dict[str, Any], path: SchemaPath, _depth: int) -> Node:
        _known(value, path, {"type", "pattern"})
        regex = self._text(value, path, "pattern")
        if not regex:
            raise TagFormatError(f"{path / 'pattern'}: must not be empty")
        if (len(regex) - len(regex.rstrip("\\"))) % 2:
            raise TagFormatError(f"{path / 'pattern'}: ends in a single backslash")
        return Pattern(regex, path / "pattern")

    def _sequence(self, value: dict[str, Any], path: SchemaPath, depth: int) -> Node:
        _known(value, path, {"type", "elements"})
        return Run(tuple(self.node(part, where, depth) for where, part in _list(value, path, "elements")))

    def _or(self, value: dict[str, Any], path: SchemaPath, depth: int) -> Node:
        _known(value, path, {"type", "elements"})
        return Either(tuple(self.node(part, where, depth) for where, part in _list(value, path, "elements")))

    def _optional(self, value: dict[str, Any], path: SchemaPath, depth: int) -> Node:
        _known(value, path, {"type", "content"})
        return Either((self.node(value.get("content"), path / "content", depth), Run(())))

    def _tag(self, value: Any, path: SchemaPath, depth: int) -> Tagged:
        if not isinstance(value, dict) or value.get("type", "tag") != "tag":
            raise TagFormatError(f"{path}: must be a tag, an object with begin, content and end")
        _known(value, path, {"type", "begin", "content", "end"})
        begin, end = self._text(value, path, "begin"), self._text(value, path, "end")
        return Tagged(begin, self.node(value.get("content"), path / "content", depth), end, path)

    def _tags(self, value: dict[str, Any], path: SchemaPath, depth: int) -> tuple[Tagged, ...]:
        tags = []
        for where, tag in _list(value, path, "tags"):
            self._count(where)
            tags.append(self._tag(tag, where, depth))
        return tuple(tags)

    def _triggered_tags(self, value: dict[str, Any], path: SchemaPath, depth: int) -> Node:
        _known(value, path, {"type", "triggers", "tags", "excludes", *_FLAGS})
        tags, excludes = self._tags(value, path, depth), self._texts(value, path, "excludes")
        return Triggered(self._triggers(value, path), tags, excludes, *_flags(value, path), path)

    def _tags_with_separator(self, value: dict[str, Any], path: SchemaPath, depth: int) -> Node:
        _known(value, path, {"type", "tags", "separator", *_FLAGS})
        tags, separator = self._tags(value, path, depth), self._text(value, path, "separator")
        return Separated(tags, separator, *_flags(value, path))

    def _text(self, value: Mapping[str, Any], path: SchemaPath, name: str) -> str:
        text = value.get(name)
        if not isinstance(text, str):
            raise TagFormatError(f"{path / name}: must be a text")
        return self._encodable(text, path / name)

    def _texts(self, value: Mapping[str, Any], path: SchemaPath, name: str) -> tuple[str, ...]:
        texts = value.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise TagFormatError(f"{path / name}: must be a list of texts that are not empty")
        if len(texts) > _MAX_TEXTS:
            raise TagFormatError(f"{path / name}: {len(texts)} are too many: at most {_MAX_TEXTS}")
        return tuple(self._encodable(text, path / name / index) for index, text in enumerate(texts))

    def _triggers(self, value: Mapping[str, Any], path: SchemaPath) -> tuple[str, ...]:
        if not (triggers := self._texts(value, path, "triggers")):
            raise TagFormatError(f"{path / 'triggers'}: must be a list of at least one text")
        return triggers

    def _encodable(self, text: str, path: SchemaPath) -> str:
        try:
            self._num_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            raise TagFormatError(f"{path}: is not valid text: {error.reason} at character {error.start}") from None
        if self._num_bytes > _MAX_BYTES:
            raise TagFormatError(f"{path}: all texts and patterns are too long: at most {_MAX_BYTES} bytes together")
        return text


def _known(value: Mapping[str, Any], path: SchemaPath, names: set[str]) -> None:
    for name in value:
        if name not in names:
            raise TagFormatError(f"{path / name[:_MAX_QUOTE]}: is not known; known are {', '.join(sorted(names))}")


def _list(value: Mapping[str, Any], path: SchemaPath, name: str) -> list[tuple[SchemaPath, Any]]:
    parts = value.get(name)
    if not isinstance(parts, list) or not parts:
        raise TagFormatError(f"{path / name}: must be a list that is not empty")
    return [(path / name / index, part) for index, part in enumerate(parts)]


def _flags(value: Mapping[str, Any], path: SchemaPath) -> tuple[bool, bool]:
    for name in _FLAGS:
        if not isinstance(value.get(name, False), bool):
            raise TagFormatError(f"{path / name}: must be true or false")
    return value.get(_FLAGS[0], False), value.get(_FLAGS[1], False)


def _schema(value: Mapping[str, Any], path: SchemaPath, name: str) -> Json:
    schema = value.get(name)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise TagFormatError(f"{path / name}: must be a JSON schema, which is an object")
    return Json(CheckedSchema(schema, path / name))


_FLAGS = ("at_least_one", "stop_after_first")
#: 128 tools take about a thousand.
_MAX_NODES = 2000
_MAX_DEPTH = 32
_MAX_TEXTS = 64
#: Of all texts that are not in schemas: writing the grammar goes through them again and again.
_MAX_BYTES = 1 << 16
_MAX_QUOTE = 64
