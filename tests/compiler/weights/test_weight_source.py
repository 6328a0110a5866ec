"""Weights that are handed out: stacks, vectors and constants, their formats, shares and memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.compiler.weights.tensor_folder import random_values, tensor_folder
from trident_compiler.checkpoint.tensor_files import StoredTensor
from trident_compiler.weights import quantization
from trident_compiler.weights.roles import Role
from trident_compiler.weights.sharding import WHOLE, ShardSpec
from trident_compiler.weights.tensor_parts import TensorPart, fused
from trident_compiler.weights.weights import Weight, WeightSource
from trident_ensemble.contract.errors import CheckpointError

OUT, IN, MEMBERS = 8, 128, 4
NAMES = [f"experts.{member}" for member in range(MEMBERS)]
TWO = (ShardSpec(0, 2), ShardSpec(1, 2))


def member_values(member: int) -> npt.NDArray[np.float32]:
    return random_values(OUT, IN, seed=member)


def stack_source(folder: Path, weights: str, plain: str = "fp32", share: ShardSpec = WHOLE) -> WeightSource:
    tensors = tensor_folder(folder, {name: member_values(member) for member, name in enumerate(NAMES)})
    return WeightSource(tensors, weights, plain, tied=False, share=share)


def as_float32(weight: Weight) -> npt.NDArray[np.float32]:
    """The numbers that a weight stands for."""
    if weight.format in {"fp32", "fp16"}:
        return weight.values.astype(np.float32)
    if weight.format == "bf16":
        return quantization.to_float32(weight.values)
    assert weight.scales is not None
    if weight.format == "int8":
        return weight.values.astype(np.float32) * weight.scales
    assert weight.zero_points is not None
    nibbles = np.stack([weight.values & 15, weight.values >> 4], -1).reshape(*weight.scales.shape, -1)
    values: npt.NDArray[np.float32] = nibbles.astype(np.float32) - weight.zero_points[..., None]
    values = values * weight.scales[..., None]
    return values.reshape(weight.shape)


@pytest.mark.parametrize(
    ("weights", "plain", "error"),
    [
        ("fp32", "fp32", 0.0),
        ("fp16", "fp16", 2e-3),
        ("bf16", "bf16", 2e-2),
        ("int8", "bf16", 2e-2),
        ("int4", "bf16", 0.3),
    ],
)
def test_stack_holds_its_members_in_the_format_of_matrices(
    tmp_path: Path, weights: str, plain: str, error: float
) -> None:
    source = stack_source(tmp_path, weights, plain)
    stack = source.stack(NAMES, OUT, IN, Role.COLUMN)
    assert (stack.format, stack.shape) == (weights, (MEMBERS, OUT, IN))
    expected = np.stack([member_values(member) for member in range(MEMBERS)])
    np.testing.assert_allclose(as_float32(stack), expected, rtol=0, atol=error)
    single = source.matrix(NAMES[2], OUT, IN, Role.COLUMN)
    np.testing.assert_array_equal(stack.values[2], single.values)
    source.require_all_used()


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize(("role", "axis"), [(Role.COLUMN, 1), (Role.ROW, 2), (Role.HEADS, 0)])
def test_stack_of_all_devices_put_together_is_the_whole(tmp_path: Path, weights: str, role: Role, axis: int) -> None:
    sources = [stack_source(tmp_path, weights, share=share) for share in (WHOLE, *TWO)]
    whole, *parts = [source.stack(NAMES, OUT, IN, role) for source in sources]
    together = np.concatenate([as_float32(part) for part in parts], axis)
    if weights == "int4" and role is Role.ROW:  # groups follow from the length of a part's rows
        np.testing.assert_allclose(together, as_float32(whole), rtol=0, atol=0.4)
    else:
        np.testing.assert_array_equal(together, as_float32(whole))
    for source in sources:
        source.require_all_used()


def test_stack_of_members_in_different_formats_is_refused(tmp_path: Path) -> None:
    large = np.full((OUT, IN), 1e6, np.float32)
    tensors = tensor_folder(tmp_path, {"a": member_values(0), "b": large})
    source = WeightSource(tensors, "fp16", "fp16", tied=False)
    with pytest.raises(CheckpointError, match="a: it and others that are used with it are stored in different formats"):
        source.stack(["a", "b"], OUT, IN, Role.COLUMN)


def test_stack_counts_once_and_gives_the_pages_of_its_members_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    monkeypatch.setattr(StoredTensor, "release", lambda tensor: released.append(tensor.name))
    source = stack_source(tmp_path, "fp32")
    stack = source.stack(NAMES, OUT, IN, Role.COLUMN)
    assert source.num_bytes == stack.num_bytes == MEMBERS * OUT * IN * 4
    assert released == NAMES


@pytest.mark.parametrize(
    ("role", "expected"),
    [(Role.VECTOR, [(3, 8)] * 2), (Role.COLUMN_BIAS, [(3, 4)] * 2), (Role.HEAD_VECTORS, [(2, 8)] * 2)],
)
def test_stacked_vector_is_shared_by_its_role(tmp_path: Path, role: Role, expected: list[tuple[int, int]]) -> None:
    count = 4 if role is Role.HEAD_VECTORS else 3
    names = [f"v{index}" for index in range(count)]
    values = {name: random_values(8, seed=index) for index, name in enumerate(names)}
    tensors = tensor_folder(tmp_path, values)
    found = []
    for share in TWO:
        source = WeightSource(tensors, "int4", "bf16", tied=False, share=share)
        found.append(source.stacked_vector(names, 8, role))
        source.require_all_used()
    assert [each.shape for each in found] == expected
    assert {each.format for each in found} == {"fp32"}
    whole = np.stack(list(values.values()))
    axis = {Role.VECTOR: None, Role.COLUMN_BIAS: 1, Role.HEAD_VECTORS: 0}[role]
    together = found[0].values if axis is None else np.concatenate([each.values for each in found], axis)
    np.testing.assert_array_equal(together, whole)


@pytest.mark.parametrize("plain", ["fp32", "fp16", "bf16"])
def test_vector_stays_exact_and_a_number_may_be_added(tmp_path: Path, plain: str) -> None:
    values = random_values(8)
    source = WeightSource(tensor_folder(tmp_path, {"norm": values}), "int4", plain, tied=False)
    np.testing.assert_array_equal(source.vector("norm", 8).values, values)
    np.testing.assert_array_equal(source.vector("norm", 8, plus=1.0).values, values + np.float32(1))
    np.testing.assert_array_equal(values, random_values(8))


def test_constant_is_shared_as_a_bias_and_is_no_tensor_of_the_checkpoint(tmp_path: Path) -> None:
    values, tensors = random_values(8), tensor_folder(tmp_path, {"norm": random_values(2)})
    sources = [WeightSource(tensors, "bf16", "bf16", tied=False, share=share) for share in TWO]
    parts = [source.constant("slopes", values, Role.COLUMN_BIAS) for source in sources]
    np.testing.assert_array_equal(np.concatenate([part.values for part in parts]), values)
    assert {source.constant("all", values).shape for source in sources} == {(8,)}
    assert sources[0].num_bytes == 0
    sources[0].vector("norm", 2)
    sources[0].require_all_used()


def test_matrix_that_needs_no_conversion_maps_the_file_and_others_give_their_pages_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    monkeypatch.setattr(StoredTensor, "release", lambda tensor: released.append(tensor.name))
    tensors = tensor_folder(tmp_path, {"x.weight": random_values(12, IN), "y": random_values(IN, 12)})
    plain = WeightSource(tensors, "fp32", "fp32", tied=False)
    in_rows, by_head = fused("x", a=8, b=4)[0], fused("x", groups=2, a=2, b=4)[1]
    for source in (TensorPart("x.weight", (12, IN)), in_rows.weight(8, IN)):
        weight = plain.matrix(source, 12 if source.rows is None else 8, IN, Role.COLUMN)
        assert np.shares_memory(weight.values, tensors["x.weight"].values)
    assert released == []
    plain.matrix(by_head.weight(8, IN), 8, IN, Role.WHOLE)
    plain.matrix(TensorPart("y", (IN, 12), transposed=True), 12, IN, Role.COLUMN)
    WeightSource(tensors, "int8", "fp32", tied=False).matrix(in_rows.weight(8, IN), 8, IN, Role.COLUMN)
    assert released == ["x.weight", "y", "x.weight"]


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_release_lets_go_of_what_is_written_and_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    source = stack_source(tmp_path, weights)
    released: list[str] = []
    weight = source.matrix(NAMES[0], OUT, IN, Role.COLUMN)
    held = source.num_bytes
    monkeypatch.setattr(StoredTensor, "release", lambda stored: released.append(stored.name))
    source.release(weight)
    assert weight.values.size > 0, "whoever holds it still has it"
    assert source.num_bytes < held / 4
    assert released == ([NAMES[0]] if weights == "fp32" else []), "what was converted has given its pages back before"
    again = source.matrix(NAMES[0], OUT, IN, Role.COLUMN)
    assert (again.name, again.format, again.shape, again.values.size) == (weight.name, weights, weight.shape, 0)
    for before, after in ((weight.scales, again.scales), (weight.zero_points, again.zero_points)):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert (after.shape, after.dtype, after.strides) == (before.shape, before.dtype, (0, 0))
    stack = source.stack(NAMES[1:], OUT, IN, Role.COLUMN)
    source.release(stack)
    source.release(source.constant("c", np.ones(3, np.float32)))
    assert source.num_bytes < held / 2
    source.require_all_used()
