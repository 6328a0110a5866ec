"""Tiny random checkpoints, made on the spot with transformers.

A few model types, or any whose sizes are given, with a byte-level BPE tokenizer trained on a few lines and a chat
template. Weights are drawn wide enough that greedy choices are far apart, and stored in bf16, so that fp32 sees the
same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

#: The model types that most tests take, and what is special about each: the tests of families have all of them.
_SPECIAL_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 32, "sliding_window": 24},
    "qwen2": {"use_sliding_window": False, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
}
FAMILIES = tuple(_SPECIAL_SETTINGS)
END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = [END, "<|user|>", "<|assistant|>", "<|system|>"]
_CORPUS = [
    "The trident has three prongs; the server has three models, and text flows through all of them.",
    "Tokens go in, tokens come out: one at a time, many at once, and each in its own order.",
    "naïve café, Straße, 東京 and 서울, and a smile 😀 👩‍👩‍👧 to finish with.",
    "def step(self): schedule, execute, sample, update",
]
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}


def tiny_config(
    family: str, vocab_size: int, sizes: Mapping[str, Any] | None = None, **changes: Any
) -> PretrainedConfig:
    """A configuration of one of `FAMILIES`, each with what is special about it, or of another type with its sizes."""
    usual = {**_COMMON, **_SPECIAL_SETTINGS[family]} if sizes is None else {**sizes, "initializer_range": 0.2}
    ends = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    config: PretrainedConfig = AutoConfig.for_model(family, **{**usual, **ends, "vocab_size": vocab_size, **changes})
    return config


def tiny_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; `END` has id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    sizes: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "5GB",
    end_ids: list[int] | None = None,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Path:
    """Save a random checkpoint with its tokenizer.

    Args:
        folder: where; created.
        family: one of `FAMILIES`, or any type of transformers with its sizes.
        sizes: sizes and settings of the network, in place of the usual ones.
        seed: of the weights.
        dtype: of the stored tensors.
        max_shard_size: as transformers takes it; a small one gives several files and an index.
        end_ids: eos_token_id of generation_config.json; the tokenizer's `END` when None.
        tokenizer: another than `tiny_tokenizer`; then no token ends the text.
        changes: to the configuration.
    """
    fast = tiny_tokenizer() if tokenizer is None else PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    torch.manual_seed(seed)
    config = tiny_config(family, changes.pop("vocab_size", len(fast)), sizes, **changes)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        # Biases and norms start as zeros and ones, which would hide that they were forgotten.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * (0.5 if name.endswith("bias") else 0.1))
    model.generation_config.eos_token_id = end_ids if end_ids is not None else fast.eos_token_id
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    fast.save_pretrained(folder)
    return folder


def reference_model(folder: Path) -> Any:
    """The checkpoint in transformers, fp32, ready to compare with."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def edit_json(path: Path, **changes: Any) -> None:
    """Change top-level keys of a JSON file; None removes a key."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), encoding="utf-8")
