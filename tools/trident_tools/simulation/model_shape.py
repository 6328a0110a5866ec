"""The size of a network: how much it holds and computes, by its shape.

Owns the counting of weights and of KV bytes. Norms and biases, less than a thousandth, are left out. Never knows how
fast anything is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trident_compiler.checkpoint.model_config import ModelConfig

#: Format -> bits of a weight, including the scales of quantized ones.
WEIGHT_BITS = {"bf16": 16.0, "fp8": 8.0, "int8": 8.1, "int4": 4.4}
#: Format -> bytes of one number in the KV cache.
KV_BYTES = {"bf16": 2, "fp8": 1}


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder, as far as its speed and its memory depend on it.

    Args:
        num_query_values: number of heads times the size of a head.
        kv_bytes: bytes of the keys and values of one token in one layer.
        layer_weights: numbers in the matrices of all layers.
        head_weights: numbers in the output projection.
        layer_bytes: bytes of the layers' matrices.
        head_bytes: bytes of the output projection.
        embedding_bytes: bytes of the embedding table; 0 where it is the output projection.
        windows: tokens that attention sees, or None for all -> number of layers that see that many.
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
        """Bytes of all weights in memory."""
        return self.layer_bytes + self.head_bytes + self.embedding_bytes

    @property
    def num_layers(self) -> int:
        """Number of all layers, whatever their windows."""
        return sum(number for _, number in self.windows)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        return self.kv_bytes * self.num_layers


def model_shape(config: ModelConfig, weights: str, kv_cache: str) -> ModelShape:
    """Count the weights and KV bytes of a network.

    Args:
        config: the configuration of the checkpoint.
        weights: a key of `WEIGHT_BITS`. As in a build, the output projection is int8 where matrices are int4, and
            a separate embedding table is not quantized.
        kv_cache: a key of `KV_BYTES`.
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
