"""Checkpoints of random weights in the shapes of published models; nothing is fetched.

Owns the shapes, the files, and how many bytes a step of such a network must read. Never trains and never measures: the
speed of a dense network does not depend on its weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SEED = 20250101
_SHARD_BYTES = 4 << 30
_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
_COMMON: dict[str, Any] = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}
#: By name, what is published of Llama-3.2-1B and of Llama-3.1-8B.
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        **_COMMON, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "tie_word_embeddings": True, "rope_parameters": {**_LLAMA_3, "factor": 32.0},
    },
    "8b": {
        **_COMMON, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
        "tie_word_embeddings": False, "rope_parameters": {**_LLAMA_3, "factor": 8.0},
    },
}  # fmt: skip

#: In the layers and in the head, which is more exact where the layers are least so.
_BYTES_PER_WEIGHT = {"bf16": (2.0, 2.0), "fp16": (2.0, 2.0), "int8": (1.0, 1.0), "fp8": (1.0, 2.0), "int4": (0.5, 1.0)}


@dataclass(frozen=True)
class Reading:
    """What a generation step reads from memory.

    Args:
        layers: weights in the layers' matrices.
        head: weights in the matrix that gives logits; the few rows of the embedding are not counted.
        kv_per_token: numbers of keys and values of one token, through all layers.
    """

    layers: int
    head: int
    kv_per_token: int

    def num_bytes(self, num_seqs: int, context_len: int, weight_format: str) -> float:
        """Bytes of a step of so many sequences, each with a context of so many tokens; scales are not counted.

        Args:
            num_seqs: sequences.
            context_len: tokens that each attends to.
            weight_format: as the manifest has it; keys and values are of 16 bits.
        """
        layers, head = _BYTES_PER_WEIGHT[weight_format]
        return self.layers * layers + self.head * head + num_seqs * context_len * self.kv_per_token * 2


def reading(config: LlamaConfig) -> Reading:
    """What a step of this shape reads."""
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    attention = config.hidden_size * (2 * heads + 2 * kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    head = config.vocab_size * config.hidden_size
    return Reading(config.num_hidden_layers * layer, head, 2 * config.num_hidden_layers * kv_heads)


def make_checkpoint(folder: Path, shape: dict[str, Any]) -> LlamaConfig:
    """Write a Llama of this shape in bf16 safetensors, a few gigabytes in memory at a time.

    Token `n` is the word `wn`, no token is special and none ends the text: a prompt of N words has N tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    GenerationConfig(do_sample=False).save_pretrained(folder)
    _words(config.vocab_size, config.max_position_embeddings).save_pretrained(folder)
    _write_weights(folder, config)
    return config


def _write_weights(folder: Path, config: LlamaConfig) -> None:
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    generator = torch.Generator().manual_seed(_SEED)
    where: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    for name, size in shapes.items():
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
            _write_shard(folder, shard, where)
        if len(size) == 1:
            shard[name] = torch.ones(size, dtype=torch.bfloat16)
        else:
            values = torch.randn(size, generator=generator, dtype=torch.float32)
            shard[name] = values.mul_(config.initializer_range).to(torch.bfloat16)
    _write_shard(folder, shard, where)
    total = 2 * sum(size.numel() for size in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(folder: Path, shard: dict[str, torch.Tensor], where: dict[str, str]) -> None:
    name = f"model-{len(set(where.values())) + 1:05}.safetensors"
    save_file(shard, folder / name, metadata={"format": "pt"})
    where.update(dict.fromkeys(shard, name))
    shard.clear()


def _words(vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    vocabulary = {f"▁w{token}": token for token in range(vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="▁w0"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=max_length)
