"""Random numbers that depend on a request's seed, a sequence's index and a token's place alone.

Owns the generator: Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), for many keys
at once; it is counter-based, so that nothing need be kept. The numbers are those of `numpy.random.Philox`, which would
have to be built anew for every row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UIntArray = npt.NDArray[np.uint64]


def uniforms(seeds: UIntArray, indices: UIntArray, places: UIntArray, attempt: int = 0) -> npt.NDArray[np.float64]:
    """One number in [0, 1) a row, with 53 random bits.

    It is the first `random()` of `Generator(Philox(key=[seed, index], counter=[place, attempt, 0, 0]))`.

    Args:
        seeds: `[R]`.
        indices: `[R]`, of the sequences among those of their requests.
        places: `[R]`, of the tokens in their sequences.
        attempt: which of the place's numbers, where it needs several.
    """
    # numpy counts up before it draws.
    first, second = places + np.uint64(1), np.full_like(places, attempt)
    third, fourth = np.zeros_like(places), np.zeros_like(places)
    keys, other_keys = seeds, indices
    for round_number in range(_NUM_ROUNDS):
        if round_number:
            keys, other_keys = keys + _STEP, other_keys + _OTHER_STEP
        high, low = _product(first, _FACTOR)
        other_high, other_low = _product(third, _OTHER_FACTOR)
        first, second, third, fourth = other_high ^ second ^ keys, other_low, high ^ fourth ^ other_keys, low
    return (first >> np.uint64(11)) * 2.0**-53


def _product(values: UIntArray, factor: np.uint64) -> tuple[UIntArray, UIntArray]:
    """The upper and the lower 64 bits of the products, by way of 32-bit halves."""
    low, high = values & _LOW_HALF, values >> _HALF
    factor_low, factor_high = factor & _LOW_HALF, factor >> _HALF
    middle = high * factor_low + (low * factor_low >> _HALF)
    other_middle = low * factor_high + (middle & _LOW_HALF)
    return high * factor_high + (middle >> _HALF) + (other_middle >> _HALF), values * factor


_NUM_ROUNDS = 10
_FACTOR, _OTHER_FACTOR = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_STEP, _OTHER_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
