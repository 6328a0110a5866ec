"""Families: what a new one takes, and what planners learn of one without knowing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from tests.checkpoints import FAMILIES as TINY_FAMILIES
from tests.checkpoints import edit_json, make_checkpoint, reference_model, tiny_config, tiny_tokenizer
from tests.fakes.progress import SilentProgress
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import StepBatch, execute
from trident_compiler.engine_builder import build_engine
from trident_compiler.families.llama import LLAMA
from trident_compiler.model_folder import Checkpoint, open_checkpoint
from trident_compiler.openvino.compiler import OpenVINOCompiler, measure_precisions
from trident_compiler.planning.machine import Machine
from trident_compiler.planning.memory_plan import LimitsRequest, parse_cache_size
from trident_compiler.weights.formats import count_matrices, estimated_bytes
from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.errors import CheckpointError, PlanError
from trident_preprocessing.chat.template_probe import write_template_profiles
from trident_tools.simulation.model_shape import model_shape

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of OLMo 2, which is unlike Llama."""
    folder, tokenizer = tmp_path_factory.mktemp("olmo2") / "checkpoint", tiny_tokenizer()
    torch.manual_seed(0)
    ids: dict[str, Any] = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    model = AutoModelForCausalLM.from_config(Olmo2Config(vocab_size=len(tokenizer), **SIZES, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.mark.slow
def test_registry_a_new_family_is_one_module_and_one_line(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It is planned, built and run by what has never heard of it, and computes what transformers does."""
    compiler = OpenVINOCompiler(Machine(2**30, "test"))
    precision = compiler.precision(checkpoint, "fp32", None)
    plan = compiler.plan(checkpoint, precision, LimitsRequest(4, 64, cache=parse_cache_size("512t")))
    manifest = build_engine(
        checkpoint, tmp_path, precision, plan,
        compiler=compiler, describe_text=write_template_profiles, progress=SilentProgress(),
    )  # fmt: skip
    assert (manifest.architecture.family, manifest.architecture.num_layers) == ("olmo2", 3)
    # Keys and values of 2 heads of 16 through 3 layers, in float32.
    assert plan.block_bytes == plan.block_size * 3 * 2 * 2 * 16 * 4

    engine, _ = load_engine(tmp_path)
    tokens, count = np.random.default_rng(0).integers(0, 400, 40).astype(np.int32), 40
    positions, ends = np.arange(count, dtype=np.int32), np.array([0, count], np.int32)
    blocks = np.arange(-(-count // plan.block_size), dtype=np.int32)
    tables = np.array([0, len(blocks)], np.int32)
    batch = StepBatch(tokens, positions, ends[:1], ends, blocks, tables, count, positions)
    logits = execute(engine, batch)
    rows, ids = np.arange(count)[:, None], np.arange(400)[None]
    found = logits.read(rows, ids)
    with torch.no_grad():
        expected = reference_model(folder)(torch.tensor(tokens[None])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))
    engine.close()


@pytest.mark.slow
def test_registry_probes_and_the_simulation_take_a_family_they_do_not_know(checkpoint: Checkpoint) -> None:
    fp32 = OpenVINOCompiler(Machine(2**30, "test")).precision(checkpoint, "fp32", "int8")
    assert fp32.activation_group == 32  # rows of 64 and 160 values
    assert measure_precisions(checkpoint.model, fp32, fp32, "F32").gain() > 0
    shape = model_shape(checkpoint.model, "bf16", "bf16")
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 160
    assert (shape.layer_weights, shape.head_weights) == (3 * layer, 400 * 64)
    assert shape.kv_bytes_per_token == 3 * 2 * 2 * 16 * 2
    with pytest.raises(PlanError, match=r"4 devices cannot share the checkpoint's 2 key and value heads"):
        checkpoint.model.outline.check_division(4)


def test_registry_refuses_a_model_type_that_no_family_has(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_type = 'olmo2': not supported; arcee, .*llama, .* are"):
        open_checkpoint(folder, [LLAMA])


def test_registry_names_tensors_that_a_family_neither_asks_for_nor_skips(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=2)
    edit_json(folder / "config.json", num_hidden_layers=1)
    opened = open_checkpoint(folder)
    source = WeightSource(opened.tensors, "fp32", "fp32", tied=opened.model.outline.is_tied)
    opened.model.write(MagicMock(), source)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.input_layernorm\.weight: .* \(9 in all\)"):
        source.require_all_used()


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_registry_outline_has_every_tensor_of_a_checkpoint_with_its_shape(name: str, tmp_path: Path) -> None:
    """Against what transformers saves."""
    opened = open_checkpoint(make_checkpoint(tmp_path / name, name))
    outline = opened.model.outline
    assert {use.name: use.shape for use in outline.weights} == {
        key: tensor.values.shape for key, tensor in opened.tensors.items()
    }
    config: Any = tiny_config(name, 400)
    assert outline.is_tied == config.tie_word_embeddings
    assert [layer.num_heads for layer in outline.layers] == [config.num_attention_heads] * config.num_hidden_layers
    assert count_matrices(outline.weights, "bf16") == (7 * config.num_hidden_layers, 0)
    stored = opened.tensors.num_bytes
    assert estimated_bytes(outline.weights, "bf16") == pytest.approx(stored, rel=0.02)
    assert outline.size(*Role) >= stored // 2
