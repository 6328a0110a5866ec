"""How much a network holds and computes, from its shape.

Owns the counting of weights and of KV bytes. Norms and biases are left out: they are less than a thousandth. Never
knows how fast anything is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trident_compiler.checkpoint.model_config import ModelConfig

#: Bits of a weight in each format, with the scales of quantized ones.
WEIGHT_BITS = {"bf16": 16.0, "fp8": 8.0, "int8": 8.1, "int4": 4.4}
#: Bytes of one number in the KV cache.
KV_BYTES = {"bf16": 2, "fp8": 1}


@dataclass(frozen=True)
class ModelShape:
    """A decoder as far as its speed and its memory go.

    Args:
        num_query_values: heads times head size.
        kv_bytes: keys and values of one token in one layer.
        layer_weights: numbers in the matrices of all layers.
        head_weights: numbers in the output projection.
        layer_bytes: bytes of the layers' matrices.
        head_bytes: bytes of the output projection.
        embedding_bytes: bytes of the table of embeddings; 0 where it is the output projection.
        windows: tokens that attention sees, None for all -> layers that see so many.
    """

    num_query_values: int
    kv_bytes: int
    layer_weights: int
    head_weights: int
    layer_bytes: float
    head_bytes: float
    embedding_bytes: float
    windows: tuple[tuple[int | None, int], ...]

    @property
    def weight_bytes(self) -> float:
        """Of everything that stays in memory."""
        return self.layer_bytes + self.head_bytes + self.embedding_bytes

    @property
    def num_layers(self) -> int:
        """All of them, whatever they see."""
        return sum(number for _, number in self.windows)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token through all layers."""
        return self.kv_bytes * self.num_layers


def model_shape(config: ModelConfig, weights: str, kv_cache: str) -> ModelShape:
    """Count.

    Args:
        config: the checkpoint's.
        weights: a format of `WEIGHT_BITS`. As in a build, the output projection is int8 where matrices are int4, and
            embeddings of their own are not quantized.
        kv_cache: a format of `KV_BYTES`.
    """
    hidden, queries = config.hidden_size, config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * config.intermediate_size
    layer_weights, head_weights = layer * config.num_layers, config.vocab_size * hidden
    return ModelShape(
        num_query_values=queries,
        kv_bytes=2 * keys * KV_BYTES[kv_cache],
        layer_weights=layer_weights,
        head_weights=head_weights,
        layer_bytes=layer_weights * WEIGHT_BITS[weights] / 8,
        head_bytes=head_weights * WEIGHT_BITS["int8" if weights == "int4" else weights] / 8,
        embedding_bytes=0.0 if config.tie_word_embeddings else head_weights * WEIGHT_BITS["bf16"] / 8,
        windows=tuple(Counter(config.sliding_windows).items()),
    )
