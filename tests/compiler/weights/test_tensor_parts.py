"""Weights inside stored tensors: fused layers as transformers splits them, whole and shared by devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.compiler.weights.tensor_folder import random_values, tensor_folder
from trident_compiler.weights.roles import Role
from trident_compiler.weights.sharding import WHOLE, ShardSpec
from trident_compiler.weights.tensor_parts import LinearPart, TensorPart, fused, halves_of_pairs
from trident_compiler.weights.weights import WeightSource

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 8, 4, 6, 32
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """A fused layer.

    Args:
        name: of the layout.
        parts: the layers inside.
        split: takes outputs `[tokens, out]` apart as transformers does, to `[tokens, its outputs]` of each layer.
        transposed: the weight is stored as `[in, out]`.
    """

    name: str
    parts: tuple[LinearPart, ...]
    split: Callable[[Array], list[Array]]
    transposed: bool = False

    @property
    def out_size(self) -> int:
        """Outputs of the stored layer."""
        size = self.parts[0].stored_out
        assert size is not None
        return size


def by_head(fused_outputs: Array) -> list[Array]:
    """As GPT-NeoX, Bloom and the small Falcons: `[heads, 3, head_dim]`."""
    heads = fused_outputs.reshape(-1, HEADS, 3, HEAD_DIM)
    return [heads[:, :, each].reshape(-1, Q) for each in range(3)]


def by_group(fused_outputs: Array) -> list[Array]:
    """As the large Falcons: `[key heads, queries of each + 2, head_dim]`."""
    groups = fused_outputs.reshape(-1, KV_HEADS, HEADS // KV_HEADS + 2, HEAD_DIM)
    return [groups[:, :, :-2].reshape(-1, Q), groups[:, :, -2].reshape(-1, KV), groups[:, :, -1].reshape(-1, KV)]


def in_four(fused_outputs: Array) -> list[Array]:
    """As CodeGen: four blocks of queries, values, keys."""
    blocks = np.split(fused_outputs.reshape(-1, 4, 3 * Q // 4), 3, axis=2)
    return [block.reshape(-1, Q) for block in blocks]


LAYOUTS = [
    Layout("one behind the other", fused("x", q=Q, k=KV, v=KV), lambda y: np.split(y, [Q, Q + KV], 1)),
    Layout(
        "transposed", fused("x", transposed=True, q=Q, k=Q, v=Q), lambda y: np.split(y, 3, 1), transposed=True
    ),
    Layout("by head", fused("x", groups=HEADS, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM), by_head),
    Layout("by group", fused("x", groups=KV_HEADS, q=Q // KV_HEADS, k=HEAD_DIM, v=HEAD_DIM), by_group),
    Layout("in four", fused("x", groups=4, q=Q // 4, v=Q // 4, k=Q // 4), in_four),
]  # fmt: skip
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def stored(layout: Layout) -> dict[str, npt.NDArray[np.float32]]:
    weight = random_values(layout.out_size, HIDDEN)
    return {"x.weight": weight.T if layout.transposed else weight, "x.bias": random_values(layout.out_size, seed=1)}


def shares(folder: Path, layout: Layout, weights: str, num_devices: int) -> list[WeightSource]:
    tensors = tensor_folder(folder, stored(layout))
    ranks = range(num_devices)
    return [WeightSource(tensors, weights, "fp32", tied=False, share=ShardSpec(rank, num_devices)) for rank in ranks]


@layouts
@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_fused_parts_of_all_devices_put_together_are_what_the_stored_layer_computes(
    tmp_path: Path, layout: Layout, num_devices: int
) -> None:
    sources = shares(tmp_path, layout, "fp32", num_devices)
    tensors, x = stored(layout), random_values(5, HIDDEN, seed=2)
    weight = tensors["x.weight"] if layout.transposed else tensors["x.weight"].T
    for part, expected in zip(layout.parts, layout.split(x @ weight + tensors["x.bias"]), strict=True):
        size = expected.shape[1]
        weights = [source.matrix(part.weight(size, HIDDEN), size, HIDDEN, Role.COLUMN) for source in sources]
        biases = [source.vector(part.bias(size), size, Role.COLUMN_BIAS) for source in sources]
        assert {each.shape for each in weights} == {(size // num_devices, HIDDEN)}
        outputs = [x @ each.values.T + bias.values for each, bias in zip(weights, biases, strict=True)]
        np.testing.assert_allclose(np.concatenate(outputs, 1), expected, rtol=0, atol=1e-5)
    for source in sources:
        source.require_all_used()


@layouts
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_fused_parts_are_quantized_row_by_row_as_layers_of_their_own(
    tmp_path: Path, layout: Layout, weights: str
) -> None:
    one, *two = [*shares(tmp_path, layout, weights, 1), *shares(tmp_path, layout, weights, 2)]
    tensor = stored(layout)["x.weight"]
    rows = tensor.T if layout.transposed else tensor
    for part, indices in zip(layout.parts, layout.split(np.arange(layout.out_size)[None]), strict=True):
        size = indices.shape[1]
        whole = one.matrix(part.weight(size, HIDDEN), size, HIDDEN, Role.COLUMN)
        parts = [source.matrix(part.weight(size, HIDDEN), size, HIDDEN, Role.COLUMN) for source in two]
        assert whole.scales is not None
        np.testing.assert_array_equal(np.concatenate([each.values for each in parts]), whole.values)
        np.testing.assert_array_equal(np.concatenate([each.scales for each in parts]), whole.scales)
        values = whole.values.astype(np.float32)
        if whole.zero_points is not None:
            nibbles = np.stack([whole.values & 15, whole.values >> 4], 2).reshape(size, HIDDEN)
            values = nibbles.astype(np.float32) - whole.zero_points
        error = np.abs(values * whole.scales - rows[indices[0]])
        assert (error <= whole.scales * 0.51).all()


def test_fused_without_groups_is_a_view_of_the_stored_tensor() -> None:
    values = random_values(Q + 2 * KV, HIDDEN)
    for part in fused("x", q=Q, k=KV, v=KV):
        assert np.shares_memory(part.weight(KV, HIDDEN).take(values), values)


@layouts
def test_fused_parts_have_names_of_their_own(layout: Layout) -> None:
    names = [source.full_name for part in layout.parts for source in (part.weight(Q, HIDDEN), part.bias(Q))]
    assert len(set(names)) == 6


@pytest.mark.parametrize(("rotated", "rotated_from"), [(6, 0), (4, 0), (4, 2)])
def test_halves_of_pairs_give_the_scores_of_rotated_pairs(rotated: int, rotated_from: int) -> None:
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3, 0.1])[: rotated // 2])
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    x = torch.from_numpy(random_values(5, 2, HEAD_DIM))
    end = rotated_from + rotated

    def turned(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return low * cosine - high * sine, high * cosine + low * sine

    pairs = x.clone()
    pairs[..., rotated_from:end:2], pairs[..., rotated_from + 1 : end : 2] = turned(
        x[..., rotated_from:end:2], x[..., rotated_from + 1 : end : 2]
    )
    order = halves_of_pairs(2, HEAD_DIM, rotated, rotated_from)
    halves = x.reshape(5, -1)[:, torch.from_numpy(order)].reshape(5, 2, HEAD_DIM)
    middle = rotated_from + rotated // 2
    low, high = turned(halves[..., rotated_from:middle], halves[..., middle:end])
    halves = torch.cat([halves[..., :rotated_from], low, high, halves[..., end:]], 2)
    scores = [torch.einsum("thd,shd->hts", each, each) for each in (pairs, halves)]
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-5)


def test_reordered_is_in_the_order_of_its_own_outputs() -> None:
    order = np.array([2, 0, 1])
    _, second = fused("x", a=3, b=3)
    assert np.asarray(second.reordered(order).rows).tolist() == [5, 3, 4]
    assert np.asarray(LinearPart("x").reordered(order).rows).tolist() == [2, 0, 1]


@pytest.mark.parametrize("transposed", [False, True])
def test_tensor_part_takes_a_member_its_transpose_rows_and_columns(transposed: bool) -> None:
    values = random_values(3, 4, 6)
    part = TensorPart("x", (3, 4, 6), "one", 1, transposed, range(1, 3), np.array([3, 0]))
    expected = (values[1].T if transposed else values[1])[1:3][:, [3, 0]]
    np.testing.assert_array_equal(part.take(values), expected)


def test_tensor_part_of_a_stack_is_shared_after_it_was_taken(tmp_path: Path) -> None:
    values = random_values(3, HIDDEN, 8)
    tensors = tensor_folder(tmp_path, {"x": values})
    part = TensorPart("x", values.shape, "1", member=1, transposed=True)
    for role, axis in ((Role.COLUMN, 0), (Role.ROW, 1)):
        found = [
            WeightSource(tensors, "fp32", "fp32", tied=False, share=share).matrix(part, 8, HIDDEN, role).values
            for share in (ShardSpec(0, 2), ShardSpec(1, 2))
        ]
        np.testing.assert_array_equal(np.concatenate(found, axis), values[1].T)
    whole = WeightSource(tensors, "fp32", "fp32", tied=False, share=WHOLE).matrix(part, 8, HIDDEN, Role.COLUMN)
    np.testing.assert_array_equal(whole.values, values[1].T)
