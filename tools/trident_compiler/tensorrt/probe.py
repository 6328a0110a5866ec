"""One layer's attention as a network of its own, to ask TensorRT whether it has kernels for it.

Owns the kinds of attention that a model has, and the network. Never compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trident_compiler.families.outline import AttentionShape
from trident_compiler.families.words import Attention
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.weights.formats import FP32
from trident_compiler.weights.weights import Weight

#: Positions of a probe's slot, which says as much about a target's kernels as a long one.
PROBE_POSITIONS = 257
_PROBE_WINDOW = 16


def kinds_of_attention(layers: Sequence[AttentionShape]) -> list[AttentionShape]:
    """Return one layer of each kind of attention, with a window that fits a probe if any of the kind has one."""
    kinds: dict[AttentionShape, bool] = {}
    for layer in layers:
        kind = replace(layer, sliding_window=None)
        kinds[kind] = kinds.get(kind, False) or layer.sliding_window is not None
    return [replace(kind, sliding_window=_PROBE_WINDOW if has_window else None) for kind, has_window in kinds.items()]


def write_probe(net: TensorRTLowering, layer: AttentionShape, num_devices: int) -> None:
    """Write a whole network that has this attention and little more; of a device's heads."""
    num_heads, num_kv_heads = layer.num_heads // num_devices, layer.num_kv_heads // num_devices
    shapes = {
        "q": (num_heads, layer.head_dim),
        "k": (num_kv_heads, layer.head_dim),
        "v": (num_kv_heads, layer.v_head_dim),
    }
    query, key, value = (
        net.split_heads(net.embedding(_zeros(name, 1, count * width)), count) for name, (count, width) in shapes.items()
    )
    attention = Attention(
        1.0,
        layer.sliding_window,
        _zeros("slopes", num_heads) if layer.has_alibi else None,
        _zeros("sinks", num_heads) if layer.has_sinks else None,
        layer.soft_cap,
    )
    net.finish(net.select_rows(net.attention(0, query, key, value, attention)))


def _zeros(name: str, *shape: int) -> Weight:
    return Weight(name, FP32, shape, np.zeros(shape, np.float32))
