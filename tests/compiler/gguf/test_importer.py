"""The import of a GGUF file, against the checkpoint that it was made of."""

from __future__ import annotations

import contextlib
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import make_checkpoint, reference_model
from tests.gguf_files import F16, F32, Q8_0, finish, floats, in_pairs, write_llama
from trident_compiler.gguf import values as gguf_values
from trident_compiler.gguf.importer import import_gguf
from trident_compiler.model_folder import open_checkpoint
from trident_ensemble.contract.errors import CheckpointError

IDS = torch.tensor([[3, 17, 200, 5, 90, 41, 7, 300]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("gguf") / "llama", "llama")


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = reference_model(folder)(IDS).logits
    return result


def test_importer_a_file_of_numbers_is_the_checkpoint_that_it_was_made_of(checkpoint: Path, tmp_path: Path) -> None:
    imported = import_gguf(write_llama(checkpoint, tmp_path / "llama.gguf"), tmp_path / "folder")
    assert (imported.model_type, imported.rounded) == ("llama", 0)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "folder", checkpoint))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Its values are bfloat16, which the file holds as float32: the narrowest exact type is found again.
        assert found[name].dtype == torch.bfloat16, name
        assert torch.equal(found[name], tensor), name
    assert torch.equal(logits(tmp_path / "folder"), logits(checkpoint))


def test_importer_the_folder_is_a_checkpoint_that_is_built(checkpoint: Path, tmp_path: Path) -> None:
    import_gguf(write_llama(checkpoint, tmp_path / "llama.gguf"), tmp_path / "folder")
    found, expected = open_checkpoint(tmp_path / "folder"), open_checkpoint(checkpoint)
    assert found.model.model_type == "llama"
    assert found.model.config == expected.model.config
    assert found.end_of_text.ids == expected.end_of_text.ids == (0,)
    assert found.tokenizer_files.template_source == "chat_template.jinja"
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["LlamaForCausalLM"])


@pytest.mark.parametrize(("dtype", "limit"), [("f32", 0), ("f16", 2**-11), (None, 2**-8)])
def test_importer_blocks_become_the_number_type_that_is_asked_for(
    dtype: str | None, limit: float, checkpoint: Path, tmp_path: Path
) -> None:
    path = write_llama(checkpoint, tmp_path / "llama.gguf", Q8_0)
    imported = import_gguf(path, tmp_path / "folder", dtype=dtype)
    tensors = load_file(tmp_path / "folder" / "model.safetensors")
    stored = {tensor.name: floats(tensor) for tensor in gguf.GGUFReader(path).tensors}
    for name, of_file, heads in (
        ("model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight", 0),
        ("model.layers.1.self_attn.k_proj.weight", "blk.1.attn_k.weight", 2),
    ):
        values = tensors[name].float().numpy()
        expected = stored[of_file]
        values = in_pairs(values, heads) if heads else values
        assert np.abs(values - expected).max() <= limit * np.abs(expected).max()
    assert (imported.rounded > 0) == (dtype != "f32")
    # Vectors are kept whatever is asked for.
    assert tensors["model.norm.weight"].dtype == torch.bfloat16


def test_importer_a_type_that_a_value_is_too_large_for_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "large", "llama", num_hidden_layers=1)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.embed_tokens.weight"][7, 7] = 1e6
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file(tensors, checkpoint / "model.safetensors")
    path = write_llama(checkpoint, tmp_path / "large.gguf")
    with pytest.raises(CheckpointError, match=r"token_embd\.weight: holds values beyond float16; use --dtype bf16"):
        import_gguf(path, tmp_path / "folder", dtype="f16")


def test_importer_a_file_of_float16_stays_float16(checkpoint: Path, tmp_path: Path) -> None:
    path = write_llama(checkpoint, tmp_path / "llama.gguf", F16)
    assert import_gguf(path, tmp_path / "folder").rounded == 0
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    found = load_file(tmp_path / "folder" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_array_equal(found.float().numpy(), stored["blk.0.ffn_up.weight"].astype(np.float32))


def test_importer_progress_ends_at_the_bytes_that_were_promised(checkpoint: Path, tmp_path: Path) -> None:
    total: list[int] = []
    reached: list[int] = []
    path = write_llama(checkpoint, tmp_path / "llama.gguf")
    import_gguf(path, tmp_path / "folder", begin=total.append, reached=reached.append)
    assert total == [reached[-1]]
    assert reached == sorted(reached)


def test_importer_no_large_tensor_is_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint(tmp_path / "wide", "llama", num_hidden_layers=1, vocab_size=30000)
    path = write_llama(checkpoint, tmp_path / "wide.gguf", Q8_0)
    monkeypatch.setattr(gguf_values, "_SLICE", 1 << 14)
    tracemalloc.start()
    try:
        import_gguf(path, tmp_path / "folder", dtype="f32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30000 * 64 * 4 / 2
    assert load_file(tmp_path / "folder" / "model.safetensors")["model.embed_tokens.weight"].shape == (30000, 64)


def without(
    path: Path, target: Path, *, drop: str = "", add: dict[str, Any] | None = None, arch: str = "llama"
) -> Path:
    """Write a file again, without a tensor, with others, or of another architecture."""
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, (values, kind) in (add or {}).items():
        writer.add_tensor(name, values, raw_dtype=kind)
    finish(writer)
    return target


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "mamba"}, "general.architecture = 'mamba': not imported; bloom, cohere2"),
        ({"drop": "blk.1.ffn_up.weight"}, r"tensor blk\.1\.ffn_up\.weight is missing"),
        ({"drop": "token_embd.weight"}, r"tensor token_embd\.weight is missing"),
        ({"add": {"blk.0.extra.weight": (np.ones(4, np.float32), F32)}}, r"blk\.0\.extra\.weight: this tensor \(1 in"),
        (
            {"add": {"rope_freqs.weight": (np.full(8, 3.0, np.float32), F32)}},
            r"rope_freqs\.weight of shape \[8\]: its factors are not those of Llama 3",
        ),
    ],
)
def test_importer_what_is_no_model_of_the_architecture_is_refused_by_name(
    changes: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = without(write_llama(checkpoint, tmp_path / "whole.gguf"), tmp_path / "other.gguf", **changes)
    with pytest.raises(CheckpointError, match=said):
        import_gguf(path, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"block_count": None}, "llama.block_count = None: must be a whole number of at least 1"),
        ({"block_count": 2000000000}, "llama.block_count = 2000000000: more than 1024 layers"),
        ({"attention.head_count": 3}, r"attn_q\.weight of shape \[64, 64\]: its rows are not those of as many"),
        ({"attention.head_count": 2000000000}, r"attn_q\.weight of shape \[64, 64\]: its rows are not"),
        ({"attention.layer_norm_rms_epsilon": None}, "llama.attention.layer_norm_rms_epsilon = None"),
    ],
)
def test_importer_a_key_that_is_missing_or_wrong_is_refused_by_name(
    keys: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        import_gguf(write_llama(checkpoint, tmp_path / "llama.gguf", **keys), tmp_path / "folder")


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "rope.dimension_count",
        "expert_count",
        "expert_used_count",
    ],
)
@pytest.mark.parametrize("value", [0, 1, 7, 2**31, 2**32 - 1])
def test_importer_a_key_of_any_size_is_read_or_refused(key: str, value: int, checkpoint: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {key: value}
    path = write_llama(checkpoint, tmp_path / "llama.gguf", **keys)
    with contextlib.suppress(CheckpointError):
        import_gguf(path, tmp_path / "folder")


def test_importer_blocks_that_the_package_does_not_convert_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_K
    blocks = np.zeros((64, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    whole = write_llama(checkpoint, tmp_path / "llama.gguf")
    path = without(whole, tmp_path / "q8k.gguf", drop="output.weight", add={"output.weight": (blocks, kind)})
    with pytest.raises(CheckpointError, match=r"output\.weight: the gguf package does not convert Q8_K"):
        import_gguf(path, tmp_path / "folder")


def test_importer_a_part_of_a_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    finish(writer)
    with pytest.raises(CheckpointError, match=r"split\.count = 3: a part of a model; .* llama-gguf-split --merge"):
        import_gguf(tmp_path / "model-00001-of-00003.gguf", tmp_path / "folder")


def test_importer_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "nan", "llama", num_hidden_layers=1)
    path = write_llama(checkpoint, tmp_path / "llama.gguf")
    raw = path.read_bytes()
    path.write_bytes(raw[:-4] + np.float32("nan").tobytes())
    with pytest.raises(CheckpointError, match="holds values that are not finite; the file is damaged"):
        import_gguf(path, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
