"""The parts of a weight that the devices take, put together, are the weight."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.checkpoints import make_checkpoint
from trident_compiler.model_folder import Checkpoint, open_checkpoint
from trident_compiler.weights.formats import estimated_bytes
from trident_compiler.weights.roles import Role
from trident_compiler.weights.sharding import WHOLE, ShardSpec
from trident_compiler.weights.weights import Weight, WeightSource

NUM_RANKS = 2
GATE, DOWN, HEAD = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"
WIDTH, HIDDEN = 192, 256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("parts") / "checkpoint"
    return open_checkpoint(make_checkpoint(folder, hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=1))


def source(checkpoint: Checkpoint, weight_format: str, share: ShardSpec = WHOLE, *, tied: bool = False) -> WeightSource:
    return WeightSource(checkpoint.tensors, weight_format, "bf16", tied=tied, uniform=True, share=share)


def restored(weight: Weight) -> npt.NDArray[np.float32]:
    """The numbers that a weight stands for, by torch's idea of the formats."""
    values = torch.from_numpy(np.array(weight.values))
    if weight.format == "bf16":
        numbers = values.view(torch.bfloat16).float().numpy()
    elif weight.format == "fp8":
        numbers = values.view(torch.float8_e4m3fn).float().numpy()
    elif weight.format == "int4":
        packed = np.stack([weight.values & 15, weight.values >> 4], axis=-1).reshape(weight.shape).astype(np.int8)
        numbers = np.where(packed > 7, packed - 16, packed).astype(np.float32)
    else:
        numbers = values.float().numpy()
    assert numbers.shape == weight.shape
    if weight.scales is not None:
        numbers = numbers * np.repeat(weight.scales, weight.shape[1] // weight.scales.shape[1], axis=1)
    return np.asarray(numbers, np.float32)


@pytest.mark.parametrize("weight_format", ["bf16", "int8", "fp8", "int4"])
def test_parallel_weights_parts_put_together_are_the_weight(weight_format: str, checkpoint: Checkpoint) -> None:
    sources = [source(checkpoint, weight_format, ShardSpec(rank, NUM_RANKS)) for rank in range(NUM_RANKS)]
    whole = source(checkpoint, weight_format)
    rows = [restored(part.matrix(GATE, WIDTH, HIDDEN, Role.COLUMN)) for part in sources]
    np.testing.assert_array_equal(np.concatenate(rows), restored(whole.matrix(GATE, WIDTH, HIDDEN, Role.COLUMN)))
    columns = [restored(part.matrix(DOWN, HIDDEN, WIDTH, Role.ROW)) for part in sources]
    if weight_format == "int4":  # groups of 64 would be cut; the parts have groups of 32
        stored = checkpoint.tensors[DOWN].values
        exact = torch.from_numpy(np.array(stored)).view(torch.bfloat16).float().numpy()
        assert np.abs(np.concatenate(columns, axis=1) - exact).max() < 0.15 * np.abs(exact).max()
        assert sources[0].matrix(DOWN, HIDDEN, WIDTH, Role.ROW).scales is not None
    else:
        whole_columns = restored(whole.matrix(DOWN, HIDDEN, WIDTH, Role.ROW))
        np.testing.assert_array_equal(np.concatenate(columns, axis=1), whole_columns)
    head = [restored(part.head(HEAD, 400, HIDDEN)) for part in sources]
    np.testing.assert_array_equal(np.concatenate(head), restored(whole.head(HEAD, 400, HIDDEN)))


def test_parallel_weights_int4_parts_whose_groups_are_not_cut_are_the_weight(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", intermediate_size=256, num_hidden_layers=1)
    opened = open_checkpoint(folder)
    parts = [
        source(opened, "int4", ShardSpec(rank, NUM_RANKS)).matrix(DOWN, 64, 256, Role.ROW) for rank in range(NUM_RANKS)
    ]
    whole = source(opened, "int4").matrix(DOWN, 64, 256, Role.ROW)
    np.testing.assert_array_equal(np.concatenate([restored(part) for part in parts], axis=1), restored(whole))


def test_parallel_weights_a_tied_table_is_whole_as_embeddings_and_in_part_as_head(checkpoint: Checkpoint) -> None:
    part = source(checkpoint, "bf16", ShardSpec(1, NUM_RANKS), tied=True)
    table = part.embedding("model.embed_tokens.weight", 400, HIDDEN)
    head = part.head("model.embed_tokens.weight", 400, HIDDEN)
    assert table.name != head.name
    np.testing.assert_array_equal(restored(table)[200:], restored(head))
    alone = source(checkpoint, "bf16", tied=True)
    assert alone.embedding("model.embed_tokens.weight", 400, HIDDEN) is alone.head(
        "model.embed_tokens.weight", 400, HIDDEN
    )


def test_parallel_weights_a_bias_goes_with_its_rows(checkpoint: Checkpoint) -> None:
    name = "model.norm.weight"
    sources = [source(checkpoint, "bf16", ShardSpec(rank, NUM_RANKS)) for rank in range(NUM_RANKS)]
    parts = [part.vector(name, HIDDEN, Role.COLUMN_BIAS) for part in sources]
    np.testing.assert_array_equal(
        np.concatenate([part.values for part in parts]), source(checkpoint, "bf16").vector(name, HIDDEN).values
    )


@pytest.mark.parametrize("tied", [True, False])
def test_parallel_weights_the_estimate_is_of_one_device(tied: bool, tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", "llama", tie_word_embeddings=tied))
    for num_devices in (1, 2):
        weights = source(opened, "bf16", ShardSpec(0, num_devices), tied=tied)
        opened.model.write(MagicMock(), weights)
        estimate = estimated_bytes(opened.model.outline.weights, "bf16", num_devices=num_devices)
        assert abs(estimate - weights.num_bytes) < 0.01 * weights.num_bytes
