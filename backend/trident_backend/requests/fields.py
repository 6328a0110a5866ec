"""Reading the fields of a request one by one, within bounds.

Owns the wording of an error about a bound: it names the client's field and the limit. Never knows what a field is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trident_ensemble.contract import tensors
from trident_ensemble.contract.client_input import decode_text
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.tensors import TensorSpec


class RequestFields:
    """The values of one request, whichever of a field's names the client used.

    Args:
        values: by tensor name. A tensor of shape `[1]` is an int, float, bool or bytes; any other is a flat list.

    Raises:
        RequestError: a field is given under two names with different values.
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
                raise RequestError(alias.name, f"is another name for {spec.name}: {value} contradicts {given}")
            self._names[spec.name] = alias.name
        if self.flag(tensors.FLOW_CONTROL, default=False):
            # The request came through preprocessing, which made these fields from the ones that the client sent.
            self._names |= {made.name: sent.name for made, sent in tensors.PREPARED.items()}

    def name(self, spec: TensorSpec) -> str:
        """Return the name by which the client knows a field."""
        return self._names.get(spec.name, spec.name)

    def __contains__(self, spec: TensorSpec) -> bool:
        return spec.name in self._values

    def flag(self, spec: TensorSpec, *, default: bool) -> bool:
        """Return a boolean field, or the default if it is absent."""
        return bool(self._values.get(spec.name, default))

    def integer(self, spec: TensorSpec, default: int, low: int, high: int | None = None) -> int:
        """Return an integer field from `low` to `high`, or the default, which is not checked, if it is absent.

        Raises:
            RequestError: the value is out of bounds.
        """
        if spec.name not in self._values:
            return default
        value = int(self._values[spec.name])
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise RequestError(self.name(spec), f"must be {bounds}, not {value}")
        return value

    def number(self, spec: TensorSpec, default: float, low: float, high: float = math.inf) -> float:
        """Return a finite number from `low` to `high`, or the default, which is not checked, if it is absent.

        Raises:
            RequestError: the value is out of bounds.
        """
        if spec.name not in self._values:
            return default
        value = float(self._values[spec.name])
        if not (low <= value <= high and math.isfinite(value)):
            bounds = f"finite and at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise RequestError(self.name(spec), f"must be {bounds}, not {value:g}")
        return value

    def positive(self, spec: TensorSpec, default: float, high: float = math.inf) -> float:
        """Return a number as `number` does, but refuse 0 and below.

        Raises:
            RequestError: the value is out of bounds.
        """
        value = self.number(spec, default, 0.0, high)
        if spec.name in self._values and value == 0:
            raise RequestError(self.name(spec), "must be above 0")
        return value

    def only(self, spec: TensorSpec, value: float, instead: str) -> None:
        """Accept a field that may only have one value.

        Args:
            spec: the field.
            value: its only value, which is also what absence means.
            instead: tells the client what to do instead.

        Raises:
            RequestError: the field has another value.
        """
        given = self._values.get(spec.name, value)
        if given != value:
            raise RequestError(self.name(spec), f"must be {str(value).lower()}: {instead}")

    def integers(self, spec: TensorSpec) -> list[int]:
        """Return a list of integers; empty if the field is absent."""
        values: list[int] = self._values.get(spec.name, [])
        return values

    def text(self, spec: TensorSpec, max_num_bytes: int) -> str:
        """Return a text; empty if the field is absent.

        Raises:
            RequestError: the text is too long, or is not valid UTF-8.
        """
        return decode_text(self.name(spec), self._values.get(spec.name, b""), max_num_bytes)

    def texts(self, spec: TensorSpec, max_num_texts: int, max_num_bytes: int) -> tuple[str, ...]:
        """Return the distinct texts of a list, in order and without empty ones.

        Raises:
            RequestError: there are too many texts, or one is too long or is not valid UTF-8.
        """
        texts = dict.fromkeys(value for value in self._values.get(spec.name, ()) if value)
        if len(texts) > max_num_texts:
            raise RequestError(self.name(spec), f"{len(texts)} are too many: at most {max_num_texts}")
        return tuple(decode_text(self.name(spec), text, max_num_bytes) for text in texts)
