"""Habits of real checkpoints' tensors: buffers of every type, missing prefixes, files that are not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.checkpoints import edit_json, make_checkpoint
from trident_compiler.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, PrefixedTensors, TensorFiles
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.weights.formats import FP32
from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.errors import CheckpointError

#: As old files of GPT-2, GPT-NeoX and others have them, and some of other types.
BUFFERS = {
    "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "h.1.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
    "h.0.attn.masked_bias": torch.tensor(-1e4),
    "h.0.attn.rotary_emb.inv_freq": torch.ones(8, dtype=torch.float64),
    "embeddings.position_ids": torch.arange(5)[None],
    "h.0.attn.scale": torch.ones(3, dtype=torch.float8_e4m3fn),
    "h.0.attn.none": torch.ones(0, 7, dtype=torch.int64),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({**BUFFERS, "h.0.w": torch.ones(2, 3), "lm_head.weight": torch.ones(4, 3)}, tmp_path / SINGLE_FILE)
    return tmp_path


def test_tensor_files_of_other_types_are_refused_only_when_they_are_asked_for(folder: Path) -> None:
    tensors = TensorFiles(folder)
    assert len(tensors) == len(BUFFERS) + 2
    assert tensors.num_bytes == sum(tensor.nbytes for tensor in BUFFERS.values()) + 4 * (6 + 12)
    assert tensors.matrix_dtypes == {"F32"}
    source = WeightSource(tensors, FP32, FP32, tied=False)
    np.testing.assert_array_equal(source.matrix("h.0.w", 2, 3, Role.WHOLE).values, np.ones((2, 3)))
    source.skip("attn.bias", ".inv_freq", ".masked_bias", "attn.scale", "attn.none", "lm_head.weight")
    with pytest.raises(CheckpointError, match=r"embeddings\.position_ids: this tensor \(1 in all\)"):
        source.require_all_used()
    source.skip("position_ids")
    source.require_all_used()
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.scale: dtype F8_E4M3 is not supported; BF16, F16, F32"):
        source.vector("h.0.attn.scale", 3)


def test_tensor_files_a_scalar_has_no_dimensions(folder: Path) -> None:
    scalar = TensorFiles(folder)["h.0.attn.masked_bias"].values
    assert scalar.shape == ()
    assert scalar == np.float32(-1e4)


def test_tensor_files_old_buffers_do_not_keep_a_model_from_being_read(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama", num_hidden_layers=1)
    stored = {name: torch.frombuffer(bytearray(tensor.values), dtype=torch.bfloat16).reshape(tensor.values.shape)
              for name, tensor in TensorFiles(folder).items()}  # fmt: skip
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8, dtype=torch.float64)}
    save_file({**stored, **buffer}, folder / SINGLE_FILE)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.matrix_dtypes == {"BF16"}
    assert set(buffer) < set(checkpoint.tensors)


def test_prefixed_tensors_are_found_without_the_prefix_that_no_name_has(folder: Path) -> None:
    tensors = PrefixedTensors(TensorFiles(folder), "transformer.")
    source = WeightSource(tensors, FP32, FP32, tied=False)
    source.matrix("transformer.h.0.w", 2, 3, Role.WHOLE)
    source.head("lm_head.weight", 4, 3)
    assert "transformer.h.0.w" in tensors
    assert "transformer.h.1.w" not in tensors
    assert None not in tensors
    assert len(tensors) == len(BUFFERS) + 2
    assert tensors.matrix_dtypes == {"F32"}
    # What is left over has the names that the file has.
    with pytest.raises(CheckpointError, match=rf"^embeddings\.position_ids: .* \({len(BUFFERS)} in all\)"):
        source.require_all_used()
    with pytest.raises(CheckpointError, match=r"^transformer\.h\.1\.w: the checkpoint has no such tensor"):
        source.matrix("transformer.h.1.w", 2, 3, Role.WHOLE)


def test_prefixed_tensors_that_have_the_prefix_are_found_with_it_only(tmp_path: Path) -> None:
    save_file({"model.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / SINGLE_FILE)
    tensors = PrefixedTensors(TensorFiles(tmp_path), "model.")
    assert "model.a" in tensors
    assert "a" not in tensors
    assert "model.b" not in tensors
    assert tensors["b"].name == "b"
    assert PrefixedTensors(TensorFiles(tmp_path), "")["model.a"].name == "model.a"


def test_prefixed_tensors_equal_a_base_model_as_transformers_saves_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama", num_hidden_layers=1, tie_word_embeddings=True)
    whole = TensorFiles(folder)
    AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(tmp_path / "base")
    base = PrefixedTensors(TensorFiles(tmp_path / "base"), "model.")
    assert "layers.0.input_layernorm.weight" in set(base)
    assert len(base) == len(whole)
    for name, tensor in whole.items():
        np.testing.assert_array_equal(base[name].values, tensor.values)


def test_tensor_files_shards_that_are_not_in_the_folder_are_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama", max_shard_size="60KB")
    assert open_checkpoint(folder).tensors.num_bytes
    names = sorted(set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()))
    assert len(names) > 2
    (folder / names[0]).unlink()
    (folder / names[-1]).unlink()
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(folder)
    assert str(refusal.value) == (
        f"{INDEX_FILE}: 2 of its {len(names)} files are not in the folder: {names[0]}, {names[-1]}"
    )
    edit_json(folder / INDEX_FILE, weight_map={str(index): f"{index}.safetensors" for index in range(9)})
    with pytest.raises(CheckpointError, match=r"9 of its 9 files .*: 0\.safetensors, .*, 4\.safetensors, \.\.\.$"):
        open_checkpoint(folder)
