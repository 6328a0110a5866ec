"""Random numbers that depend on a request's seed, a sequence's index and a token's position alone.

Owns the generator: Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), for many keys
at once. Never keeps a state, as the generator is counter-based. The numbers are those of `numpy.random.Philox`, which
would have to be built anew for every row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UIntArray = npt.NDArray[np.uint64]


def uniforms(seeds: UIntArray, indices: UIntArray, positions: UIntArray, attempt: int = 0) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) a row, with 53 random bits.

    It is the first `random()` of `Generator(Philox(key=[seed, index], counter=[position, attempt, 0, 0]))`.

    Args:
        seeds: `[R]`.
        indices: `[R]`, of the sequences among those of their requests.
        positions: `[R]`, of the tokens in their sequences.
        attempt: which of the position's numbers, where it needs several.
    """
    # The first and the third of the generator's four words, which are multiplied, and the second and the fourth. numpy
    # counts up before it draws.
    multiplied, others = np.zeros((2, 2, len(seeds)), np.uint64)
    multiplied[0] = positions + np.uint64(1)
    others[0] = attempt
    keys = np.array([seeds, indices])
    for _ in range(_NUM_ROUNDS):
        high, low = _product(multiplied)
        multiplied, others = high[::-1] ^ others ^ keys, low[::-1]
        keys += _STEPS
    numbers: npt.NDArray[np.float64] = (multiplied[0] >> np.uint64(11)) * 2.0**-53
    return numbers


def _product(values: UIntArray) -> tuple[UIntArray, UIntArray]:
    """Return the upper and the lower 64 bits of the products with the factors, by way of 32-bit halves."""
    low, high = values & _LOW_HALF, values >> _HALF
    middle = high * _LOW_FACTORS + (low * _LOW_FACTORS >> _HALF)
    other_middle = low * _HIGH_FACTORS + (middle & _LOW_HALF)
    return high * _HIGH_FACTORS + (middle >> _HALF) + (other_middle >> _HALF), values * _FACTORS


_NUM_ROUNDS = 10
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_FACTORS: UIntArray = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_LOW_FACTORS, _HIGH_FACTORS = _FACTORS & _LOW_HALF, _FACTORS >> _HALF
_STEPS: UIntArray = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
