"""The numbers of GPUs, and the shares of them that kernels reach.

Owns the table and the efficiency factors. The numbers are NVIDIA's for dense matrices, from the data sheets of the
H200, H100 SXM, A100 80GB SXM, L40S and L4 Tensor Core GPUs, which often print twice as much, for structured sparsity.
Never knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """The numbers of one accelerator.

    Args:
        bandwidth: bytes per second of its memory.
        flops: floating-point operations per second of matrix products.
        memory: size of its memory in bytes.
    """

    bandwidth: float
    flops: float
    memory: float


@dataclass(frozen=True)
class GpuDataSheet:
    """The numbers of a GPU, with those of products in bf16 (fp16 is as fast) and in fp8, None where it has none."""

    bandwidth: float
    flops_bf16: float
    flops_fp8: float | None
    memory: float


@dataclass(frozen=True)
class Efficiency:
    """The shares of the hardware's numbers that an engine reaches; 1 is the roof itself.

    Args:
        bandwidth: share of the memory's bandwidth.
        flops: share of the rate of products.
        memory: share of the memory that weights and KV cache may fill together; the rest is for activations.
    """

    bandwidth: float = 0.8
    flops: float = 0.6
    memory: float = 0.9


GPUS = {
    "h200": GpuDataSheet(4.8e12, 989e12, 1979e12, 141e9),
    "h100": GpuDataSheet(3.35e12, 989e12, 1979e12, 80e9),
    "a100": GpuDataSheet(2.039e12, 312e12, None, 80e9),
    "l40s": GpuDataSheet(0.864e12, 362e12, 733e12, 48e9),
    "l4": GpuDataSheet(0.3e12, 121e12, 242e12, 24e9),
}
