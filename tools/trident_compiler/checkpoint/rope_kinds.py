"""The kinds of rotary scaling: what each makes of the plain inverse frequencies.

Owns the formulas and the keys that each reads, with transformers' defaults. Never finds a key's object in config.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig

Floats = npt.NDArray[np.float32]
#: Beyond every number that a checkpoint has, and far from where the formulas overflow.
MOST = 1e15
ORIGINAL = "original_max_position_embeddings"


class Scaling(NamedTuple):
    """The input of a kind's formula.

    Args:
        section: the object with the kind's keys.
        theta: the base of the wavelengths, greater than 1.
        plain: float32 `[rotated / 2]`, the inverse frequencies without scaling.
        original: positions before scaling; None: said nowhere.
        max_positions: positions after it.
    """

    section: JsonConfig
    theta: float
    plain: Floats
    original: int | None
    max_positions: int

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """Return a number of the kind's."""
        return self.section.number(key, default, zero=zero, most=MOST)


class Scaled(NamedTuple):
    """The result of a kind's formula.

    Args:
        frequencies: float32 `[rotated / 2]`.
        factor: of cosine and sine.
        long_frequencies: those for sequences beyond the original positions, where they differ.
    """

    frequencies: Floats
    factor: float = 1.0
    long_frequencies: Floats | None = None


def _default(scaling: Scaling) -> Scaled:
    return Scaled(scaling.plain)


def _linear(scaling: Scaling) -> Scaled:
    return Scaled(scaling.plain / np.float32(scaling.number("factor")))


def _dynamic(scaling: Scaling) -> Scaled:
    """Read the factor, which changes the base only beyond `max_positions`, where no engine goes."""
    scaling.number("factor")
    return Scaled(scaling.plain)


def _llama3(scaling: Scaling) -> Scaled:
    """Stretch long waves by `factor`, keep short ones, and blend those between."""
    plain, original = scaling.plain, scaling.original or scaling.max_positions
    factor, low, high = (scaling.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelengths = 2 * math.pi / plain
    if high <= low:
        blend = (wavelengths <= original / low).astype(np.float32)
    else:
        blend = np.clip((original / wavelengths - low) / (high - low), 0, 1).astype(np.float32)
    return Scaled(((1 - blend) * plain / np.float32(factor) + blend * plain).astype(np.float32))


def _yarn(scaling: Scaling) -> Scaled:
    """Stretch waves that turn less than `beta_slow` times in the original context, keep those that turn more than
    `beta_fast` times, and blend those between, pair by pair.

    Some old files call longrope by this name; its lists tell it.
    """
    if scaling.section.values.get("short_factor") is not None:
        return _longrope(scaling)
    plain, original, size = scaling.plain, scaling.original or scaling.max_positions, 2 * len(scaling.plain)
    factor = scaling.number("factor", scaling.max_positions / original)

    def pair_of(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(scaling.theta))

    first = pair_of(scaling.number("beta_fast", 32.0, zero=True) or 32.0)
    last = pair_of(scaling.number("beta_slow", 1.0, zero=True) or 1.0)
    if scaling.section.flag("truncate", default=True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    length = 0.001 if first == last else last - first
    stretch = np.clip((np.arange(size // 2, dtype=np.float32) - first) / length, 0, 1).astype(np.float32)

    def growth(scale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    numerator, denominator = (scaling.number(key, 0.0, zero=True) for key in ("mscale", "mscale_all_dim"))
    implied = growth(numerator) / growth(denominator) if numerator and denominator else growth()
    frequencies = plain / np.float32(factor) * stretch + plain * (1 - stretch)
    return Scaled(frequencies.astype(np.float32), scaling.number("attention_factor", implied))


def _longrope(scaling: Scaling) -> Scaled:
    """Divide each pair's frequency by a factor of its own, from one list up to the original length, from another
    beyond."""
    original = scaling.original
    if original is None:
        raise scaling.section.refuse(ORIGINAL, "longrope needs it, here or outside")
    factor = scaling.number("factor", scaling.max_positions / original)
    implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Scaled(
        scaling.plain / _factors(scaling, "short_factor"),
        scaling.number("attention_factor", implied),
        scaling.plain / _factors(scaling, "long_factor"),
    )


def _factors(scaling: Scaling, key: str) -> Floats:
    value, length = scaling.section.values.get(key), len(scaling.plain)
    if not isinstance(value, list) or len(value) != length:
        raise scaling.section.refuse(key, f"must be a list of {length} numbers, one for each pair of features")
    items = JsonConfig({f"{key}[{index}]": item for index, item in enumerate(value)}, scaling.section.where)
    return np.array([items.number(item, most=MOST) for item in items.values], np.float32)


#: Kind -> formula, by what config.json calls it.
KINDS: dict[str, Callable[[Scaling], Scaled]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}
