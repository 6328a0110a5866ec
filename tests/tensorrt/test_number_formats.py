"""Number formats in numpy against torch."""

from __future__ import annotations

import numpy as np
import torch

from tests.tensorrt.number_formats import decode, encode, rounded
from tests.tensorrt.small_networks import bits, normal


def test_number_formats_bfloat16_rounds_as_torch_does() -> None:
    values = np.concatenate(
        [normal(2000) * 10.0**e for e in range(-40, 38, 6)] + [np.array([np.inf, -np.inf, np.nan, -0.0, 3.4e38])]
    ).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(rounded(values, "BF16"), expected.float().numpy())
    np.testing.assert_array_equal(encode(values[:-3], "BF16"), bits(expected)[:-3])


def test_number_formats_float8_is_torchs_and_saturates() -> None:
    codes = np.arange(256, dtype=np.uint8)
    table = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(decode(codes, "FP8"), table)
    finite = ~np.isnan(table)
    np.testing.assert_array_equal(encode(table[finite], "FP8"), codes[finite])
    middles = (table[:0x7E] + table[1:0x7F]) / 2
    values = np.concatenate([normal(5000) * 100, normal(5000) * 0.01, middles, -middles]).clip(-448, 448)
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(rounded(values, "FP8"), expected)
    np.testing.assert_array_equal(rounded(np.array([1e9, -460.0], np.float32), "FP8"), [448, -448])


def test_number_formats_int4_is_unpacked_low_half_first() -> None:
    packed = np.array([0x21, 0x8F, 0x07], np.uint8)
    np.testing.assert_array_equal(decode(packed, "INT4", (5,)), [1, 2, -1, -8, 7])
