"""Number formats of engines for GPUs: the defaults, and which of them a GPU has no products in.

Owns the rules about compute capabilities. Never compiles or converts anything.
"""

from __future__ import annotations

from trident_compiler.model_folder import Checkpoint
from trident_compiler.tensorrt.gpu import Capability
from trident_compiler.weights.formats import BF16, FP8, FP16, INT4
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import Precision, sm_target

#: The first compute capabilities with products in these formats.
_FIRST_BF16: Capability = (8, 0)
_FIRST_INT4: Capability = (8, 0)
_FIRST_FP8: Capability = (8, 9)
_KV_FORMATS = {FP16: "f16", BF16: "bf16"}


def tensorrt_precision(
    checkpoint: Checkpoint, compute: str | None, weight_format: str | None, capability: Capability
) -> Precision:
    """Return the number formats of an engine, with defaults resolved.

    Compute is bf16 or fp16, by default as the checkpoint, and bf16 for fp32. Weights are 16 bits as the computation, or
    int8, int4 or fp8.

    Raises:
        BuildError: such a GPU cannot compute in them.
    """
    gpu = sm_target(capability)
    if compute is None:
        compute = FP16 if checkpoint.tensors.matrix_dtypes == {"F16"} or capability < _FIRST_BF16 else BF16
    if compute not in _KV_FORMATS:
        raise BuildError(
            f"--precision {compute}: TensorRT computes in bf16 or fp16; --engine openvino computes in fp32"
        )
    if compute == BF16 and capability < _FIRST_BF16:
        raise BuildError(f"--precision bf16: {gpu} cannot compute in bfloat16; use fp16")
    if weight_format in {BF16, FP16} and weight_format != compute:
        raise BuildError(f"--weights {weight_format}: weights of 16 bits are as the computation, which is {compute}")
    if weight_format == INT4 and capability < _FIRST_INT4:
        raise BuildError(f"--weights int4: {gpu} has no products with int4, which begin with sm_80; use int8")
    if weight_format == FP8 and capability < _FIRST_FP8:
        raise BuildError(f"--weights fp8: {gpu} has no products in float8, which begin with sm_89; use int8")
    if weight_format == FP8 and compute == FP16:
        raise BuildError("--weights fp8: sums of float8 products can exceed float16; use --precision bf16")
    return Precision(compute, weight_format or compute, _KV_FORMATS[compute])
