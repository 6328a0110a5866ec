"""Falcon, in the layouts of 40B and 180B, 11B, 7B and RW.

ALiBi is compared with transformers' sdpa: its eager attention adds it twice.
"""

from tests.compiler.families.case import Case
from trident_compiler.families.features import Feature

_SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
_GROUPS = {**_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2}
_RW = {**_SIZES, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": False}

CASES = [
    Case("falcon", "", _SIZES),
    Case("falcon", "one branch behind the other", {**_SIZES, "parallel_attn": False, "tie_word_embeddings": False}),
    Case("falcon", "two norms", _GROUPS),
    Case("falcon", "one norm", {**_GROUPS, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 96, "activation": "relu"}),
    Case("falcon", "alibi", _RW, "sdpa", features=(Feature.ALIBI,)),
    Case("falcon", "alibi in groups", {**_GROUPS, "alibi": True}, "sdpa", features=(Feature.ALIBI,)),
]
