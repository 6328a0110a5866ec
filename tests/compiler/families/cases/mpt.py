"""MPT."""

from tests.compiler.families.case import Case
from trident_compiler.families.features import Feature

_SIZES = {"vocab_size": 96, "d_model": 64, "n_layers": 4, "n_heads": 4, "max_seq_len": 256}
_CLIPPED = {"alibi": True, "clip_qkv": 0.5, "softmax_scale": 0.2}

CASES = [
    Case("mpt", "", _SIZES, features=(Feature.ALIBI,)),
    Case("mpt", "clipped, heads that are no power of two", {
        **_SIZES, "d_model": 96, "n_heads": 6, "attn_config": _CLIPPED, "tie_word_embeddings": False,
    }, features=(Feature.ALIBI,)),
]  # fmt: skip
