"""The checkpoint that the benchmarks serve: a random Llama whose words are its tokens.

Owns the network's shape and the tokenizer. Never trains and never measures: the speed of a dense network does not
depend on its weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 32000
NUM_LAYERS = 12
MAX_LENGTH = 2048
_SEED = 20250101


def make_checkpoint(folder: Path, num_layers: int = NUM_LAYERS) -> None:
    """Write a Llama of 12 layers x 768 (12 heads, 4 KV heads, FF 2048, 125 million parameters) in bf16 safetensors.

    Token `n` is the word `wn`, no token is special and none ends the text: a prompt of N words has N tokens. The same
    seed gives the same weights on every call with one version of torch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=num_layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = LlamaForCausalLM(config).to(torch.bfloat16)
    network.generation_config = GenerationConfig(do_sample=False)
    network.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"▁w{token}": token for token in range(VOCAB_SIZE)}, unk_token="▁w0"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=MAX_LENGTH)
