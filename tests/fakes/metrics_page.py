"""Instruments that keep what they are sent, as the server's metrics page would show it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

LABELS = {"model": "core", "version": "1"}


class Page:
    """Instruments that add up what they are sent."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self.observed: dict[str, list[float]] = defaultdict(list)
        self.bounds: dict[str, tuple[float, ...]] = {}
        self.messages: list[str] = []
        self.after_message: Callable[[], None] = lambda: None

    def value(self, family: str, **labels: str) -> float:
        return self.values[family, frozenset({**LABELS, **labels}.items())]

    def gauge(self, family: str, description: str, labels: Mapping[str, str]) -> Callable[[float], None]:
        return self._made(family, description, labels, adds=False)

    def counter(self, family: str, description: str, labels: Mapping[str, str]) -> Callable[[float], None]:
        return self._made(family, description, labels, adds=True)

    def histogram(
        self, family: str, description: str, labels: Mapping[str, str], bounds: Sequence[float]
    ) -> Callable[[float], None]:
        assert description
        assert labels == LABELS
        self.bounds[family] = tuple(bounds)
        return self.observed[family].append

    def _made(self, family: str, description: str, labels: Mapping[str, str], *, adds: bool) -> Callable[[float], None]:
        key = family, frozenset(labels.items())
        assert description
        assert labels.items() >= LABELS.items()
        assert key not in self.values, "made twice"
        self.values[key] = 0.0

        def send(value: float) -> None:
            assert math.isfinite(value)
            assert value > 0 or not adds
            self.messages.append(family)
            self.values[key] = self.values[key] + value if adds else value
            self.after_message()

        return send
