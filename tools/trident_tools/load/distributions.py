"""Lengths of prompts and outputs, as distributions of tokens.

Owns the way they are written on a command line, and the drawing of samples. Never knows what the lengths are for.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Kind -> the names of its numbers.
_KINDS = {
    "constant": ("value",),
    "normal": ("mean", "deviation"),
    "uniform": ("low", "high"),
    "lognormal": ("mean", "deviation"),
}
_FORMS = "128, normal:128:32, uniform:64:256 or lognormal:128:64"


@dataclass(frozen=True)
class Distribution:
    """A distribution of whole numbers of at least 1.

    Args:
        kind: constant, normal, uniform (both ends included) or lognormal.
        numbers: the value; the mean and the standard deviation; or the lowest and the highest; in tokens.
    """

    kind: str
    numbers: tuple[float, ...]

    def sample(self, random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """Draw `count` lengths, shape `[count]`; a length below 1 becomes 1."""
        if self.kind == "constant":
            return np.full(count, int(self.numbers[0]), np.int64)
        low_or_mean, high_or_deviation = self.numbers
        if self.kind == "uniform":
            low, high = int(low_or_mean), int(high_or_deviation)
            drawn = np.asarray(random.integers(low, high, count, endpoint=True), np.float64)
        elif self.kind == "normal":
            drawn = random.normal(low_or_mean, high_or_deviation, count)
        else:
            # The numbers describe the lengths themselves; numpy's describe their logarithms.
            variance = math.log1p((high_or_deviation / low_or_mean) ** 2)
            drawn = random.lognormal(math.log(low_or_mean) - variance / 2, math.sqrt(variance), count)
        return np.maximum(np.rint(drawn), 1).astype(np.int64)

    def __str__(self) -> str:
        numbers = [f"{number:g}" for number in self.numbers]
        return numbers[0] if self.kind == "constant" else ":".join([self.kind, *numbers])


def parse_distribution(text: str) -> Distribution:
    """Read a distribution such as `128`, `normal:128:32`, `uniform:64:256` or `lognormal:128:64`.

    Raises:
        argparse.ArgumentTypeError: the text is not a distribution, or allows no length of at least 1.
    """
    kind, *words = text.split(":") if ":" in text else ("constant", text)
    names = _KINDS.get(kind)
    if names is None or len(words) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a distribution of tokens: write {_FORMS}")
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} has something other than numbers: write {_FORMS}") from None
    whole = kind in ("constant", "uniform")
    for name, number in zip(names, numbers, strict=True):
        least = 0 if name == "deviation" else 1
        if not least <= number < math.inf or (whole and number != int(number)):
            kind_of_number = "whole number" if whole else "number"
            raise argparse.ArgumentTypeError(f"{text!r}: {name} must be a {kind_of_number} of at least {least}")
    if kind == "uniform" and numbers[0] > numbers[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: low must not be above high")
    return Distribution(kind, numbers)
