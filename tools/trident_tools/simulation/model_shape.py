"""The size of a network: how much it holds and computes, by its shape.

Owns the counting of weights and of KV bytes. Norms and biases, less than a thousandth, are left out. Never knows how
fast anything is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trident_compiler.families.family import Decoder
from trident_compiler.weights.formats import BF16, head_format
from trident_compiler.weights.roles import Role

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
        layer_weights: numbers in the matrices of all layers with which one token is computed: of experts, its own.
        head_weights: numbers in the output projection.
        layer_bytes: bytes of the layers' matrices, all experts among them.
        head_bytes: bytes of the output projection.
        embedding_bytes: bytes of the embedding table; 0 where it is the output projection.
        windows: tokens that attention sees, or None for all -> number of layers that see that many.
        expert_bytes: bytes of all experts.
        expert_share: the share of a layer's experts that one token has.
    """

    num_query_values: int
    kv_bytes: int
    layer_weights: int
    head_weights: int
    layer_bytes: float
    head_bytes: float
    embedding_bytes: float
    windows: tuple[tuple[int | None, int], ...]
    expert_bytes: float = 0.0
    expert_share: float = 1.0

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights in memory."""
        return self.layer_bytes + self.head_bytes + self.embedding_bytes

    def read_bytes(self, num_tokens: int) -> float:
        """Return the bytes of the layers' matrices that a step reads: all but the experts that none of its tokens has.

        Tokens are taken to choose evenly and apart from each other.
        """
        return self.layer_bytes - self.expert_bytes * (1 - self.expert_share) ** num_tokens

    @property
    def num_layers(self) -> int:
        """Number of all layers, whatever their windows."""
        return sum(number for _, number in self.windows)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        return self.kv_bytes * self.num_layers


def model_shape(model: Decoder, weights: str, kv_cache: str) -> ModelShape:
    """Count the weights and KV bytes of a network.

    Args:
        model: the architecture of the checkpoint.
        weights: a key of `WEIGHT_BITS`. As in a build, the output projection is int8 where matrices are int4 and bf16
            where they are fp8, and a separate embedding table is not quantized.
        kv_cache: a key of `KV_BYTES`.
    """
    outline = model.outline
    linear = (Role.COLUMN, Role.ROW, Role.WHOLE)
    layer_weights, head_weights = outline.size(*linear), outline.size(Role.HEAD)
    experts = sum(use.size for use in outline.weights if use.name in outline.shares)
    layers = outline.layers
    return ModelShape(
        num_query_values=sum(layer.num_heads * layer.head_dim for layer in layers) // len(layers),
        kv_bytes=sum(layer.kv_size for layer in layers) // len(layers) * KV_BYTES[kv_cache],
        layer_weights=outline.active_size(*linear),
        head_weights=head_weights,
        layer_bytes=layer_weights * WEIGHT_BITS[weights] / 8,
        head_bytes=head_weights * WEIGHT_BITS[head_format(weights, BF16)] / 8,
        embedding_bytes=0.0 if outline.is_tied else outline.size(Role.EMBEDDING) * WEIGHT_BITS["bf16"] / 8,
        windows=tuple(Counter(layer.sliding_window for layer in layers).items()),
        expert_bytes=experts * WEIGHT_BITS[weights] / 8,
        expert_share=next(iter(outline.shares.values()), 1.0),
    )
