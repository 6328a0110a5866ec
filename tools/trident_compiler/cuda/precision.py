"""Number formats of engines of our own kernels: the defaults, and which of them a GPU has no products in.

Owns the rules. Never compiles or converts anything.
"""

from __future__ import annotations

from trident_compiler.cuda.targets import Capability, has_type
from trident_compiler.model_folder import Checkpoint
from trident_compiler.weights.formats import BF16, FP8, FP16, FP32, QUANTIZED
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import Precision, sm_target

#: Triton's type of 8-bit floating-point numbers.
_FP8_DTYPE = "fp8e4nv"
_KV_FORMATS = {FP16: "f16", BF16: "bf16", FP32: "f32"}


def cuda_precision(
    checkpoint: Checkpoint,
    compute: str | None,
    weight_format: str | None,
    capability: Capability,
    *,
    fp8_cache: bool = False,
) -> Precision:
    """Return the number formats of an engine, with defaults resolved.

    Compute is bf16, fp16 or fp32, by default fp16 where the checkpoint's matrices are, and else bf16. Weights are as
    the computation, or int8, int4 or fp8. The KV cache is as the computation, or with `fp8_cache` in fp8.

    Raises:
        BuildError: such a GPU cannot compute in them.
    """
    if compute is None:
        compute = FP16 if checkpoint.tensors.matrix_dtypes == {"F16"} else BF16
    if weight_format is not None and weight_format not in (compute, *QUANTIZED):
        raise BuildError(
            f"--weights {weight_format}: weights that are not quantized are as the computation, which is {compute}"
        )
    for option, is_fp8, remedy in (
        ("--weights fp8", weight_format == FP8, "use int8"),
        ("--kv-cache-precision fp8", fp8_cache, "leave it out"),
    ):
        if is_fp8 and not has_type(capability, _FP8_DTYPE):
            raise BuildError(
                f"{option}: {sm_target(capability)} does not convert float8, which begins with sm_89; {remedy}"
            )
    return Precision(compute, weight_format or compute, FP8 if fp8_cache else _KV_FORMATS[compute])


def cache_dtype(precision: Precision) -> str:
    """Return Triton's type of the KV cache."""
    return _FP8_DTYPE if precision.kv_cache == FP8 else precision.compute
