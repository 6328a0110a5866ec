"""Reads the fields of a request one by one, within bounds.

Owns how a bound that is broken is said: by the field's name and its limit. Never knows what a field is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.tensors import TensorSpec


class RequestFields:
    """What a client has given, under whichever of a field's names.

    Args:
        values: by tensor name: of shape `[1]` an int, float, bool or bytes, of any other a flat list of them.

    Raises:
        RequestError: a field is given under two names with two values.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._names: dict[str, str] = {}
        for alias, spec in tensors.ALIASES.items():
            if alias.name not in values:
                continue
            value = self._values.pop(alias.name)
            if self._values.setdefault(spec.name, value) != value:
                given = self._values[spec.name]
                raise RequestError(alias.name, f"is another name of {spec.name}: {value} contradicts {given}")
            self._names[spec.name] = alias.name
        if self.flag(tensors.FLOW_CONTROL, default=False):
            # The request has come through preprocessing, which made these of what the client sent.
            self._names |= {made.name: sent.name for made, sent in tensors.PREPARED.items()}

    def name(self, spec: TensorSpec) -> str:
        """What the client calls it."""
        return self._names.get(spec.name, spec.name)

    def __contains__(self, spec: TensorSpec) -> bool:
        return spec.name in self._values

    def flag(self, spec: TensorSpec, *, default: bool) -> bool:
        """A truth value."""
        return bool(self._values.get(spec.name, default))

    def integer(self, spec: TensorSpec, default: int, low: int, high: int | None = None) -> int:
        """A whole number from `low` to `high`; the default is not checked.

        Raises:
            RequestError: it is out of bounds.
        """
        if spec.name not in self._values:
            return default
        value = int(self._values[spec.name])
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise RequestError(self.name(spec), f"must be {bounds}, not {value}")
        return value

    def number(self, spec: TensorSpec, default: float, low: float, high: float = math.inf) -> float:
        """A finite number from `low` to `high`; the default is not checked.

        Raises:
            RequestError: it is out of bounds.
        """
        if spec.name not in self._values:
            return default
        value = float(self._values[spec.name])
        if not (low <= value <= high and math.isfinite(value)):
            bounds = f"finite and at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise RequestError(self.name(spec), f"must be {bounds}, not {value:g}")
        return value

    def positive(self, spec: TensorSpec, default: float, high: float = math.inf) -> float:
        """The same above 0.

        Raises:
            RequestError: it is out of bounds.
        """
        value = self.number(spec, default, 0.0, high)
        if spec.name in self._values and value == 0:
            raise RequestError(self.name(spec), "must be above 0")
        return value

    def only(self, spec: TensorSpec, value: float, instead: str) -> None:
        """Take a field that has one good value.

        Raises:
            RequestError: it has another; says what to do instead.
        """
        given = self._values.get(spec.name, value)
        if given != value:
            raise RequestError(self.name(spec), f"must be {str(value).lower()}: {instead}")

    def integers(self, spec: TensorSpec) -> list[int]:
        """A list; empty when it was not given."""
        values: list[int] = self._values.get(spec.name, [])
        return values

    def text(self, spec: TensorSpec, max_num_bytes: int) -> str:
        """A text; empty when it was not given.

        Raises:
            RequestError: it is too long, or no UTF-8.
        """
        return _decoded(self.name(spec), self._values.get(spec.name, b""), max_num_bytes)

    def texts(self, spec: TensorSpec, max_num_texts: int, max_num_bytes: int) -> tuple[str, ...]:
        """A list's different texts, without empty ones, in order.

        Raises:
            RequestError: they are too many, or one is too long or no UTF-8.
        """
        texts = dict.fromkeys(value for value in self._values.get(spec.name, ()) if value)
        if len(texts) > max_num_texts:
            raise RequestError(self.name(spec), f"{len(texts)} are too many: at most {max_num_texts}")
        return tuple(_decoded(self.name(spec), text, max_num_bytes) for text in texts)


def _decoded(name: str, value: bytes, max_num_bytes: int) -> str:
    if len(value) > max_num_bytes:
        raise RequestError(name, f"{len(value)} bytes are too many: at most {max_num_bytes}")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RequestError(name, f"is no UTF-8: {error.reason} at byte {error.start}") from None
