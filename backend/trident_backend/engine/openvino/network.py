"""How a network is compiled by OpenVINO, and the shape of the KV cache that the plugin gives it.

Owns the compilation's properties and the reading of the cache's shape, so that the compiler's memory plan and the
engine host cannot differ. Never runs a network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import openvino as ov

from trident_backend.engine.openvino import attention as openvino_attention
from trident_backend.engine.openvino import names
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import Precision

_TYPES = {"bf16": ov.Type.bf16, "fp32": ov.Type.f32, "f32": ov.Type.f32, "u8": ov.Type.u8}
_HALVES = (ov.Type.bf16, ov.Type.f16)


@dataclass(frozen=True)
class CacheTensor:
    """One cache input of a compiled network.

    Args:
        name: of the input.
        element_type: OpenVINO's type of its elements.
        block_shape: of one block; the input is `[num_blocks, *block_shape]`.
    """

    name: str
    element_type: Any
    block_shape: tuple[int, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of this layer's keys or values."""
        return math.prod(self.block_shape) * int(self.element_type.bitwidth) // 8


@dataclass(frozen=True)
class CacheGeometry:
    """The paged KV cache of a compiled network.

    Args:
        tensors: keys and values of each layer.
        block_size: tokens in one block.
    """

    tensors: tuple[CacheTensor, ...]
    block_size: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of keys and values through all layers."""
        return sum(tensor.block_bytes for tensor in self.tensors)


def compile_network(network: Any, precision: Precision) -> Any:
    """Insert a network's attention and compile it for the latency of one infer request at a time.

    Args:
        network: as read from its file; it is changed.
        precision: of its computation and its KV cache.

    Raises:
        ArtifactError: the precision or the network is not of this version.
    """
    for field, value in (("compute", precision.compute), ("kv_cache", precision.kv_cache)):
        if value not in _TYPES:
            raise ArtifactError(f"precision.{field}: {value!r} is not known to the OpenVINO engine; build again")
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": _TYPES[precision.compute],
        "KV_CACHE_PRECISION": _TYPES[precision.kv_cache],
    }
    if precision.activation_group:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = precision.activation_group
    layers = openvino_attention.insert(network)
    if any(layer.v_head_dim < layer.head_dim for layer in layers):
        # With scales along the tokens, quantized keys would be read as if values were as long as they are.
        properties["KEY_CACHE_QUANT_MODE"] = "BY_TOKEN"
    mark_compressed_weights(network)
    return ov.Core().compile_model(network, "CPU", properties)


def mark_compressed_weights(network: Any) -> None:
    """Tell the plugin that 16-bit constants behind a conversion are compressed weights, to be kept as they are.

    Without the mark the plugin computes the same from copies, and a network takes three times its weights. OpenVINO's
    file format does not keep the mark. Branches of the network are networks of their own.
    """
    for node in network.get_ops():
        if node.get_type_name() == "If":
            mark_compressed_weights(node.get_then_body())
            mark_compressed_weights(node.get_else_body())
        elif node.get_type_name() == "Convert":
            source = node.input_value(0)
            if source.get_node().get_type_name() == "Constant" and source.get_element_type() in _HALVES:
                node.get_rt_info()["decompression_0"] = True


def cache_geometry(compiled: Any) -> CacheGeometry:
    """Return the shape of a compiled network's KV cache, which the plugin has decided."""
    tensors = []
    block_size = 0
    for port in compiled.inputs:
        name = port.get_any_name()
        if names.is_cache(name):
            shape = port.get_partial_shape()
            block_shape = tuple(shape[axis].get_length() for axis in range(1, len(shape)))
            tensors.append(CacheTensor(name, port.get_element_type(), block_shape))
            if names.is_value_cache(name):
                # Keys may carry rows of scales beside their tokens; values have one row a token: [heads, tokens, size].
                block_size = block_shape[1]
    return CacheGeometry(tuple(tensors), block_size)
