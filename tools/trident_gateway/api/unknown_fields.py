"""The fields of a body that its type does not have.

Owns the one walk over a decoded body and its type that finds them, in time that grows with the body alone: what a
decoder says about a body quotes the client, and says it of one field at a time. Never refuses anything.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import inspect


@dataclass
class _Fields:
    """The fields of one struct, with what their values may hold."""

    shapes: Mapping[str, _Shape | None]
    is_closed: bool


@dataclass
class _Shape:
    """The structs that a value may be or hold.

    Args:
        structs: by their tags; by None where there is but one.
        tag_field: tells them apart.
        elements: of a list.
        values: of an object whose keys may be anything.
    """

    structs: dict[object, _Fields] = field(default_factory=dict)
    tag_field: str = ""
    elements: _Shape | None = None
    values: _Shape | None = None

    @property
    def is_empty(self) -> bool:
        return not self.structs and self.elements is None and self.values is None


def drop_unknown(raw: Any, kind: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    """Yield the path and the name of each unknown field of a body when it has been taken out, in their order.

    Args:
        raw: the body, decoded without a type.
        kind: its type, in which no struct holds itself.
    """
    shape = _shape_of(kind)
    if shape is not None:
        yield from _drop(raw, shape, "")


def _drop(raw: Any, shape: _Shape, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(raw, list):
        if shape.elements is not None:
            for index, element in enumerate(raw):
                yield from _drop(element, shape.elements, f"{path}[{index}]")
        return
    if not isinstance(raw, dict):
        return
    fields = _fields_of(raw, shape)
    if fields is None:
        if shape.values is not None:
            for value in raw.values():
                yield from _drop(value, shape.values, f"{path}[...]")
        return
    for name in tuple(raw):
        if name in fields.shapes:
            inner = fields.shapes[name]
            if inner is not None:
                yield from _drop(raw[name], inner, f"{path}.{name}" if path else name)
        elif fields.is_closed:
            del raw[name]
            yield path, name


def _fields_of(raw: Mapping[str, Any], shape: _Shape) -> _Fields | None:
    if not shape.tag_field:
        return shape.structs.get(None)
    tag = raw.get(shape.tag_field)
    return shape.structs.get(tag) if isinstance(tag, str) else None


@functools.lru_cache(maxsize=32)
def _shape_of(kind: type[msgspec.Struct]) -> _Shape | None:
    return _shape(inspect.type_info(kind))


def _shape(info: inspect.Type) -> _Shape | None:
    """Return what a type may hold; None where that is no struct."""
    shape = _Shape()
    options = _options(info)
    structs = [option for option in options if isinstance(option, inspect.StructType)]
    if len(structs) > 1:
        shape.tag_field = structs[0].tag_field or ""
    for struct in structs:
        shape.structs[struct.tag if shape.tag_field else None] = _Fields(_shapes(struct), struct.forbid_unknown_fields)
    for option in options:
        if isinstance(option, inspect.CollectionType):
            shape.elements = _shape(option.item_type)
        elif isinstance(option, inspect.DictType):
            shape.values = _shape(option.value_type)
    return None if shape.is_empty else shape


def _options(info: inspect.Type) -> list[inspect.Type]:
    """Return the types of a union, or the one type, without what was noted about them."""
    if isinstance(info, inspect.Metadata):
        return _options(info.type)
    if isinstance(info, inspect.UnionType):
        return [option for each in info.types for option in _options(each)]
    return [info]


def _shapes(struct: inspect.StructType) -> dict[str, _Shape | None]:
    shapes = {one.encode_name: _shape(one.type) for one in struct.fields}
    return shapes if struct.tag_field is None else {**shapes, struct.tag_field: None}
