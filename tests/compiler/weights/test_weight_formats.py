"""What is said of weights before they are read, held against what is handed out."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from tests.checkpoints import make_checkpoint
from trident_compiler.model_folder import Checkpoint, open_checkpoint
from trident_compiler.weights.formats import count_matrices, estimated_bytes
from trident_compiler.weights.roles import Role
from trident_compiler.weights.sharding import WHOLE, ShardSpec
from trident_compiler.weights.tensor_parts import TensorPart
from trident_compiler.weights.weights import Weight, WeightSource

NUM_LAYERS = 2
HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "hidden_size": 128}


class RememberingSource(WeightSource):
    """Keeps the weights of linear layers that it hands out."""

    def __init__(self, checkpoint: Checkpoint, share: ShardSpec, *, uniform: bool) -> None:
        super().__init__(checkpoint.tensors, "int4", "bf16", tied=False, uniform=uniform, share=share)
        self.matrices: list[Weight] = []

    def matrix(self, source: str | TensorPart, out_size: int, in_size: int, role: Role) -> Weight:
        self.matrices.append(super().matrix(source, out_size, in_size, role))
        return self.matrices[-1]


def handed_out(checkpoint: Checkpoint, num_devices: int, *, uniform: bool = True) -> RememberingSource:
    source = RememberingSource(checkpoint, ShardSpec(0, num_devices), uniform=uniform)
    checkpoint.model.write(MagicMock(), source)
    return source


def in_the_plan(source: RememberingSource) -> float:
    """Bytes of the matrices with scales in 16 bits and zero points in 4."""
    total = 0.0
    for weight in source.matrices:
        assert weight.scales is not None
        total += weight.values.nbytes + weight.scales.size * 2
        total += 0 if weight.zero_points is None else weight.zero_points.size / 2
    return total


@pytest.mark.parametrize(
    ("intermediate_size", "num_devices", "num_wider"),
    [(1024, 1, 0), (1024, 2, 0), (1040, 1, 2), (1056, 1, 0), (1056, 2, 2)],
)
def test_weight_formats_int4_that_becomes_int8_is_counted(
    tmp_path: Path, intermediate_size: int, num_devices: int, num_wider: int
) -> None:
    folder = make_checkpoint(
        tmp_path / "llama", "llama", intermediate_size=intermediate_size, num_hidden_layers=NUM_LAYERS, **HEADS
    )
    checkpoint = open_checkpoint(folder)
    source = handed_out(checkpoint, num_devices)
    formats = [weight.format for weight in source.matrices]
    assert count_matrices(checkpoint.model.outline.weights, "int4", num_devices) == (len(formats), num_wider)
    assert formats.count("int8") == num_wider
    assert count_matrices(checkpoint.model.outline.weights, "int8", num_devices) == (len(formats), 0)


@pytest.mark.parametrize(
    ("intermediate_size", "num_devices", "uniform"),
    [(1024, 1, True), (1024, 1, False), (1040, 1, True), (1056, 1, True), (1056, 1, False), (1056, 2, True)],
)
def test_weight_formats_the_estimate_knows_groups_and_what_has_none(
    tmp_path: Path, intermediate_size: int, num_devices: int, uniform: bool
) -> None:
    sizes, estimates = [], []
    # The difference is of layers alone.
    for num_layers in (1, 1 + NUM_LAYERS):
        folder = tmp_path / f"llama {num_layers}"
        changes = {"intermediate_size": intermediate_size, "num_hidden_layers": num_layers, **HEADS}
        checkpoint = open_checkpoint(make_checkpoint(folder, "llama", **changes))
        sizes.append(in_the_plan(handed_out(checkpoint, num_devices, uniform=uniform)))
        estimates.append(
            estimated_bytes(checkpoint.model.outline.weights, "int4", uniform=uniform, num_devices=num_devices)
        )
    norms = NUM_LAYERS * 2 * 128 * 4
    assert estimates[1] - estimates[0] - norms == pytest.approx(sizes[1] - sizes[0], rel=0.04)


def test_weight_formats_groups_of_a_cut_row_may_be_shorter_than_those_of_the_whole(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama", "llama", intermediate_size=192, num_hidden_layers=1, **HEADS)
    checkpoint = open_checkpoint(folder)
    down = [
        RememberingSource(checkpoint, share, uniform=True).matrix(
            "model.layers.0.mlp.down_proj.weight", 128, 192, Role.ROW
        )
        for share in (WHOLE, ShardSpec(0, 2))
    ]
    groups = [weight.scales.shape[1] for weight in down if weight.scales is not None]
    assert groups == [192 // 64, 96 // 32]
    assert not np.array_equal(down[0].values[:, : 96 // 2], down[1].values)
