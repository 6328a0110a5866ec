"""What GPUs can do at most, and how much of that kernels reach.

Owns the table and the efficiency factors. The numbers are the makers' for dense matrices (their data sheets often print
twice as much, for structured sparsity): NVIDIA H200, H100 SXM, A100 80GB SXM, L40S and L4 Tensor Core GPU data sheets.
Never knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One accelerator.

    Args:
        bandwidth: of its memory, bytes/s.
        flops: of matrix products, FLOP/s.
        memory: bytes.
    """

    bandwidth: float
    flops: float
    memory: float


@dataclass(frozen=True)
class Gpu:
    """As `Hardware`, for each format of products: bf16 (fp16 is as fast), and fp8, None where it has none."""

    bandwidth: float
    flops_bf16: float
    flops_fp8: float | None
    memory: float


@dataclass(frozen=True)
class Efficiency:
    """The share of the hardware's numbers that an engine reaches; 1 is the roof itself.

    Args:
        bandwidth: of the memory's rate.
        flops: of the products' rate.
        memory: of the memory that weights and KV cache together may fill; the rest is for activations.
    """

    bandwidth: float = 0.8
    flops: float = 0.6
    memory: float = 0.9


GPUS = {
    "h200": Gpu(4.8e12, 989e12, 1979e12, 141e9),
    "h100": Gpu(3.35e12, 989e12, 1979e12, 80e9),
    "a100": Gpu(2.039e12, 312e12, None, 80e9),
    "l40s": Gpu(0.864e12, 362e12, 733e12, 48e9),
    "l4": Gpu(0.3e12, 121e12, 242e12, 24e9),
}
