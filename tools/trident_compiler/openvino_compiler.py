"""Networks for OpenVINO: what the memory plan must know of one, and writing one to disk.

Owns the calls of the compiler; the lowering beside it owns the operations. Never reads a checkpoint, never plans.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov

from trident_backend.engine.artifact import Compiler, Precision
from trident_backend.engine.openvino_network import CacheGeometry, cache_geometry, compile_network
from trident_compiler.families.llama import llama
from trident_compiler.lowering_openvino import Network, OpenVINOLowering
from trident_compiler.model_config import ModelConfig
from trident_compiler.weights import BF16, FP16, FP32, Weight, WeightSource
from trident_ensemble import layout

#: Memory that weights take once an engine runs, as a share of their file: packed copies, some of them for two kernels.
RESIDENT_SHARE = 1.5
_POLL_SECONDS = 0.05


def compiler() -> Compiler:
    """Name and version, for the manifest."""
    return Compiler("openvino", ov.__version__.partition("-")[0])


def computes_bf16() -> bool:
    """Whether the plugin can compute in bfloat16 on this CPU; it needs AVX-512."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def plain_format(compute: str) -> str:
    """The 16-bit format that the plugin handles best: its fused feed-forward in bf16 takes float16 constants, while
    fp32 keeps the checkpoint's values exactly."""
    return FP16 if compute == "bf16" else BF16


def kv_precision(compute: str) -> str:
    """The KV cache in the precision of the computation: exact, and faster than the plugin's default of u8."""
    return "bf16" if compute == "bf16" else "f32"


def probe_cache(config: ModelConfig, precision: Precision) -> CacheGeometry:
    """The cache of one layer of this attention geometry, read off a compiled network of nothing else."""
    net = OpenVINOLowering()
    heads = []
    for name, count in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads)):
        shape = (1, count * config.head_dim)
        heads.append(net.split_heads(net.embedding(Weight(name, FP32, shape, np.zeros(shape, np.float32))), count))
    attended = net.attention(0, *heads, scale=1.0, sliding_window=None)
    network = net.network(net.select_rows(attended), config.num_heads * config.head_dim)
    return cache_geometry(compile_network(network.model, precision))


def lower(config: ModelConfig, source: WeightSource) -> Network:
    """The family in OpenVINO's operations.

    Raises:
        CheckpointError: tensors are missing, of another shape, or left over.
    """
    net = OpenVINOLowering()
    logits = llama(net, config, source)
    source.require_all_used()
    return net.network(logits, config.vocab_size)


def write_network(folder: Path, network: Network, on_written: Callable[[int], None] = lambda _: None) -> None:
    """Write `network.xml` and `network.bin`; `on_written` is called with the bytes written so far."""
    target = folder / layout.WEIGHTS_FILE
    with ThreadPoolExecutor(1) as writer:
        done = writer.submit(ov.serialize, network.model, folder / layout.NETWORK_FILE, target)
        while not done.done():
            time.sleep(_POLL_SECONDS)
            on_written(target.stat().st_size if target.exists() else 0)
        done.result()
