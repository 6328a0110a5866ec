"""Number formats of engines of our own kernels: the defaults, and which of them a GPU has no products in.

Owns the rules. Never compiles or converts anything.
"""

from __future__ import annotations

from trident_compiler.cuda.targets import Capability, has_type
from trident_compiler.model_folder import Checkpoint
from trident_compiler.weights.formats import BF16, FP8, FP16, FP32, QUANTIZED
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import Precision, sm_target

_KV_FORMATS = {FP16: "f16", BF16: "bf16", FP32: "f32"}


def cuda_precision(
    checkpoint: Checkpoint, compute: str | None, weight_format: str | None, capability: Capability
) -> Precision:
    """Return the number formats of an engine, with defaults resolved.

    Compute is bf16, fp16 or fp32, by default fp16 where the checkpoint's matrices are, and else bf16. Weights are as
    the computation, or int8, int4 or fp8.

    Raises:
        BuildError: such a GPU cannot compute in them.
    """
    if compute is None:
        compute = FP16 if checkpoint.tensors.matrix_dtypes == {"F16"} else BF16
    if weight_format is not None and weight_format not in (compute, *QUANTIZED):
        raise BuildError(
            f"--weights {weight_format}: weights that are not quantized are as the computation, which is {compute}"
        )
    if weight_format == FP8 and not has_type(capability, "fp8e4nv"):
        raise BuildError(
            f"--weights fp8: {sm_target(capability)} does not convert float8, which begins with sm_89; use int8"
        )
    return Precision(compute, weight_format or compute, _KV_FORMATS[compute])
