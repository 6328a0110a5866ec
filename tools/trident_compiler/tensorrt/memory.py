"""The memory that a network takes on each GPU, as slots of its KV cache are planned with it.

Owns the estimates of what TensorRT holds beside the weights and the cache. Never plans a slot, never compiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trident_backend.engine.gpu.names import ALIGNMENT
from trident_compiler.families.family import Decoder
from trident_compiler.families.outline import AttentionShape, Outline
from trident_compiler.planning.slot_plan import SlotNeeds
from trident_compiler.tensorrt.attention import takes_products
from trident_compiler.tensorrt.sampling_networks import MAX_ROWS as SAMPLED_ROWS
from trident_compiler.weights.formats import estimated_bytes
from trident_compiler.weights.roles import Role

#: CUDA's context, kernels, and work space of matrix multiplication and of attention.
_FIXED_BYTES = 1 << 29
#: Bytes of a score that products make: in 16 bits, in single precision, and as a weight in 16 bits.
_SCORE_BYTES = 8
#: Bytes of a bias by distance: in single precision and in 16 bits.
_BIAS_BYTES = 6


def slot_needs(model: Decoder, matrix_format: str, num_devices: int) -> SlotNeeds:
    """Return the memory that each of `num_devices` GPUs needs for its share of a model.

    Args:
        model: the whole.
        matrix_format: format of the linear layers.
        num_devices: they divide it.
    """
    outline = model.outline
    # One token's keys, or its values, in one layer's cache of 16 bits.
    row_bytes = [
        layer.num_kv_heads // num_devices * width * 2
        for layer in outline.layers
        for width in (layer.head_dim, layer.v_head_dim)
    ]
    return SlotNeeds(
        weights_bytes=estimated_bytes(outline.weights, matrix_format, uniform=True, num_devices=num_devices),
        fixed_bytes=_FIXED_BYTES + _sampling_bytes(model.vocab_size),
        step_token_bytes=_step_token_bytes(model, num_devices),
        position_bytes=sum(row_bytes),
        multiple=math.lcm(*(ALIGNMENT // math.gcd(ALIGNMENT, num_bytes) for num_bytes in row_bytes)),
        max_position_embeddings=model.max_position_embeddings,
        score_bytes=_score_bytes(outline.layers) // num_devices,
    )


def _step_token_bytes(model: Decoder, num_devices: int) -> int:
    """Return what one token of a step takes: its row of logits in float32, and in 16 bits before, and as many
    activations of 16 bits as the largest layer computes, though few of them live at a time."""
    return 6 * model.vocab_size + 2 * (model.outline.layer_features + _expert_features(model.outline, num_devices))


def _expert_features(outline: Outline, num_devices: int) -> int:
    """Return the numbers that all experts of the largest mixture compute of one token: three inner ones, an output."""
    stacks = (use.shape for use in outline.weights if use.role is Role.COLUMN and len(use.shape) == 3)
    return max((count * (3 * inner // num_devices + hidden) for count, inner, hidden in stacks), default=0)


def _score_bytes(layers: Sequence[AttentionShape]) -> int:
    """Return what all heads' scores of one token and one position take: one layer's, and biases that layers share."""
    products = (layer.num_heads for layer in layers if takes_products(layer))
    biased = (layer.num_heads for layer in layers if layer.has_alibi)
    return _SCORE_BYTES * max(products, default=0) + _BIAS_BYTES * max(biased, default=0)


def _sampling_bytes(vocab_size: int) -> int:
    """Return what sampling takes: a few rows of float32 for each row of one run, and its table of penalties."""
    return 20 * SAMPLED_ROWS * vocab_size
