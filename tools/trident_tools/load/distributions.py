"""Lengths of prompts and outputs, as distributions of tokens.

Owns how they are written on a command line and drawn. Never knows what the lengths are for.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Kind -> what its numbers are called.
_KINDS = {
    "constant": ("value",),
    "normal": ("mean", "deviation"),
    "uniform": ("low", "high"),
    "lognormal": ("mean", "deviation"),
}
_FORMS = "128, normal:128:32, uniform:64:256 or lognormal:128:64"


@dataclass(frozen=True)
class Distribution:
    """Whole numbers of at least 1.

    Args:
        kind: constant, normal, uniform (both ends included) or lognormal.
        numbers: in tokens: the value; mean and standard deviation; lowest and highest.
    """

    kind: str
    numbers: tuple[float, ...]

    def sample(self, random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """`count` lengths, shape [count]. What would be below 1 is 1."""
        if self.kind == "constant":
            return np.full(count, int(self.numbers[0]), np.int64)
        low_or_mean, high_or_deviation = self.numbers
        if self.kind == "uniform":
            low, high = int(low_or_mean), int(high_or_deviation)
            drawn = np.asarray(random.integers(low, high, count, endpoint=True), np.float64)
        elif self.kind == "normal":
            drawn = random.normal(low_or_mean, high_or_deviation, count)
        else:
            # The numbers are of the lengths themselves, numpy's are of their logarithms.
            variance = math.log1p((high_or_deviation / low_or_mean) ** 2)
            drawn = random.lognormal(math.log(low_or_mean) - variance / 2, math.sqrt(variance), count)
        return np.maximum(np.rint(drawn), 1).astype(np.int64)

    def __str__(self) -> str:
        numbers = [f"{number:g}" for number in self.numbers]
        return numbers[0] if self.kind == "constant" else ":".join([self.kind, *numbers])


def parse_distribution(text: str) -> Distribution:
    """A distribution as it is written: `128`, `normal:128:32`, `uniform:64:256`, `lognormal:128:64`.

    Raises:
        argparse.ArgumentTypeError: it is none of these, or allows no length of at least 1.
    """
    kind, *words = text.split(":") if ":" in text else ("constant", text)
    names = _KINDS.get(kind)
    if names is None or len(words) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no distribution of tokens: say {_FORMS}")
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} has something else than numbers: say {_FORMS}") from None
    whole = kind in ("constant", "uniform")
    for name, number in zip(names, numbers, strict=True):
        least = 0 if name == "deviation" else 1
        if not least <= number < math.inf or (whole and number != int(number)):
            kind_of_number = "whole number" if whole else "number"
            raise argparse.ArgumentTypeError(f"{text!r}: {name} must be a {kind_of_number} of at least {least}")
    if kind == "uniform" and numbers[0] > numbers[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: low must not be above high")
    return Distribution(kind, numbers)
