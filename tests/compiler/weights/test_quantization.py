"""Number formats against torch's arithmetic, and the error that quantization may make."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trident_compiler.weights import quantization


def random_matrix(out_size: int, in_size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.normal(size=(out_size, in_size)) * random.uniform(0.001, 3, (out_size, 1))).astype(np.float32)


def test_quantization_bfloat16_rounds_as_torch_does() -> None:
    edges = np.array([0, -0.0, 1e-40, 3.4e38, np.inf, -np.inf, 1.00390625, 1.01171875], np.float32)
    values = np.concatenate([random_matrix(700, 40).reshape(-1), edges])
    expected = torch.from_numpy(values).to(torch.bfloat16)
    bits = quantization.to_bfloat16(values)
    np.testing.assert_array_equal(bits, expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(quantization.to_float32(bits), expected.float().numpy())
    assert np.isnan(quantization.to_float32(quantization.to_bfloat16(np.array([np.nan], np.float32)))).all()


def test_quantization_float16_gives_up_where_a_value_is_too_large() -> None:
    values = random_matrix(30, 40)
    halves = quantization.to_float16(values)
    assert halves is not None
    np.testing.assert_array_equal(halves, torch.from_numpy(values).half().numpy())
    values[3, 3] = 70000
    assert quantization.to_float16(values) is None


def test_quantization_int8_is_off_by_half_a_step_at_most() -> None:
    values = random_matrix(300, 4097)
    values[7] = 0
    quantized, scales = quantization.int8_per_channel(values)
    assert quantized.min() >= -127
    assert (np.abs(quantized * scales - values) <= scales * 0.5001).all()
    np.testing.assert_allclose(scales[:, 0][values.any(1)], np.abs(values).max(1)[values.any(1)] / 127, rtol=1e-6)


def as_bfloat16(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return torch.from_numpy(scales).to(torch.bfloat16).float().numpy()


def test_quantization_scales_are_rounded_before_values_are_divided_by_them() -> None:
    values = random_matrix(300, 200)
    quantized, scales = quantization.int8_per_channel(values, as_bfloat16)
    np.testing.assert_array_equal(scales, as_bfloat16(scales))
    assert np.abs(quantized.astype(int)).max() <= 127
    # Where the scale was rounded down, the very largest values give way.
    inner = np.abs(values) <= 126.5 * scales
    assert (np.abs(quantized * scales - values) <= scales * 0.5001)[inner].all()
    assert inner.mean() > 0.98


def test_quantization_float8_rounds_as_torch_does() -> None:
    random = np.random.default_rng(0)
    edges = [0, -0.0, 448, -448, 2**-9, 2**-10, 3 * 2**-10, 1.5 * 2**-9, 2**-6, 0.999 * 2**-6, 1e-30, 17, 19, 0.9375]
    values = np.append(random.normal(size=50_000) * 10 ** random.uniform(-4, 2, 50_000), edges).astype(np.float32)
    values = np.clip(values, -448, 448)
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(quantization.to_e4m3(values), expected)
    beyond = np.array([449, 1e9, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(quantization.to_e4m3(beyond), [0x7E, 0x7E, 0x7E, 0xFE])
    assert quantization.to_e4m3(np.array([np.nan], np.float32))[0] & 0x7F == 0x7F


def test_quantization_float8_has_the_largest_of_a_row_at_the_end_of_its_range() -> None:
    values = random_matrix(40, 5000)
    values[7] = 0
    bits, scales = quantization.e4m3_per_channel(values, as_bfloat16)
    restored = torch.from_numpy(bits).view(torch.float8_e4m3fn).float().numpy() * scales
    # Three bits of fraction: half a step is a sixteenth.
    assert (np.abs(restored - values) <= np.maximum(np.abs(values) / 15.9, scales * 2**-9)).all()
    largest = np.abs(torch.from_numpy(bits).view(torch.float8_e4m3fn).float().numpy()).max(1)
    assert (largest[values.any(1)] == 448).all()
    np.testing.assert_array_equal(scales, as_bfloat16(scales))
    assert not restored[7].any()


@pytest.mark.parametrize(("in_size", "size"), [(256, 128), (192, 64), (96, 32)])
def test_quantization_symmetric_int4_is_off_by_half_a_step_at_most(in_size: int, size: int) -> None:
    values = random_matrix(50, in_size)
    values[3, :size] = -np.abs(values[3, :size])  # a group of one sign, which has eight steps
    values[4] = 0
    packed, scales = quantization.int4_symmetric(values, quantization.as_they_are)
    signed = unpack(packed).astype(np.int8)
    signed = np.where(signed > 7, signed - 16, signed)
    steps = np.repeat(scales, size, axis=1)
    assert (scales > 0).all()
    assert (np.abs(signed * steps - values) <= steps * 0.5001).all()
    assert signed[3, :size].min() == -8
    assert not signed[4].any()
    assert signed[5:].max() == 7


def unpack(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    values: npt.NDArray[np.uint8] = np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
    return values


@pytest.mark.parametrize(("in_size", "size"), [(256, 128), (192, 64), (96, 32)])
def test_quantization_int4_is_off_by_a_step_at_most(in_size: int, size: int) -> None:
    values = random_matrix(50, in_size)
    values[3, :size] = np.abs(values[3, :size])  # a group of one sign
    values[4] = 0
    packed, scales, zero_points = quantization.int4_groups(values)
    assert quantization.group_size(in_size) == size
    steps = np.repeat(scales, size, axis=1)
    restored = (unpack(packed).astype(np.float32) - np.repeat(zero_points, size, axis=1)) * steps
    assert (np.abs(restored - values) <= steps * 1.01).all()
    assert np.abs(restored - values).mean() < 0.3 * steps.mean()
    assert not restored[4].any()


def test_quantization_rows_that_no_group_divides() -> None:
    assert quantization.group_size(100) is None
