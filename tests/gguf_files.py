"""GGUF files of tiny checkpoints, written with the `gguf` package.

Owns what a writer of such files does to Llama's tensors, by the format's own description and not by the importer's
code: names by the package's map, the rows of queries and keys in the order of neighbouring pairs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

Q8_0, F16, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32


def in_pairs(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Return the rows of rotated heads with halves `a b c | A B C` as `a A b B c C`."""
    size = rows.shape[0] // heads
    order = [
        head * size + half * (size // 2) + pair for head in range(heads) for pair in range(size // 2) for half in (0, 1)
    ]
    return rows[order]


def write_llama(checkpoint: Path, path: Path, kind: Any = F32, *, tokenizer: bool = True, **keys: Any) -> Path:
    """Write a Llama checkpoint.

    Args:
        checkpoint: as `make_checkpoint` saves it.
        path: the file.
        kind: GGML's type of the matrices.
        tokenizer: write the vocabulary of tokenizer.json.
        keys: keys of the architecture, underscores for points, in place of the checkpoint's; None leaves one out.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
    } | keys
    for key, value in values.items():
        if isinstance(value, float):
            writer.add_float32(f"llama.{key}", value)
        elif value is not None:
            writer.add_uint32(f"llama.{key}", value)
    if tokenizer:
        add_vocabulary(writer, json.loads((checkpoint / "tokenizer.json").read_text()))
        writer.add_eos_token_id(0)
        writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        array = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            array = in_pairs(array, heads if "q_proj" in name else kv_heads)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if array.ndim > 1:
            writer.add_tensor(stored, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, array)
    finish(writer)
    return path


def add_vocabulary(writer: Any, tokenizer: dict[str, Any], pre: str = "gpt-2") -> None:
    """Add a byte-level vocabulary, as tokenizer.json has it."""
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])


def finish(writer: Any) -> None:
    """Write everything."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def floats(reader_tensor: Any) -> npt.NDArray[np.float32]:
    """Return the values of a tensor of `GGUFReader`."""
    values: npt.NDArray[np.float32] = gguf.quants.dequantize(reader_tensor.data, reader_tensor.tensor_type)
    return values
