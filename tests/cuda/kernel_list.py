"""The kernels of models of published shapes, as an engine for a GPU has them.

Owns which shapes are looked at when kernels are compiled for all GPUs. Never compiles one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from trident_backend.engine.gpu.program import Argument, Count
from trident_compiler.cuda.attention_kernels import attention_specs, copy_blocks_spec
from trident_compiler.cuda.builder import NOTHING, Grid, value
from trident_compiler.cuda.expert_kernels import combine_launch, expert_launches, group_launch, route_launch
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.linear_kernels import linear_launches
from trident_compiler.cuda.linear_tiles import Matrix
from trident_compiler.cuda.pointwise_kernels import gated_launch
from trident_compiler.cuda.row_kernels import gather_launch, norm_launch, rotate_launch
from trident_compiler.cuda.sampling_kernels import sampling_specs
from trident_compiler.cuda.targets import Capability, has_type
from trident_compiler.families.words import Activation, Routing, Scoring

#: Rows of a step.
MAX_ROWS = 8192
#: Programs of some kernel, by what they are called in a report.
Kernels = dict[str, KernelSpec]


@dataclass
class Recorder:
    """A `LaunchMaker` that keeps the kernels alone."""

    specs: dict[KernelSpec, tuple[int, int]] = field(default_factory=dict)
    counted: Count = Count.TOKENS

    def value(self, width: int, dtype: str, count: Count) -> str:
        return "value"

    def weight(self, name: str, array: Callable[[], npt.NDArray[Any]] | npt.NDArray[Any], dtype: str) -> str:
        return name

    def launch(
        self, spec: KernelSpec, grid: Grid, arguments: Mapping[str, Argument], least: int = 0, most: int = 0
    ) -> None:
        self.specs.setdefault(spec, (least, most))


@dataclass(frozen=True)
class AttentionShape:
    """The attention of layers."""

    num_kv_heads: int
    group: int
    head_dim: int
    v_head_dim: int
    features: frozenset[str] = frozenset()


#: By name: the attention of models.
ATTENTION = {
    "llama 8b": AttentionShape(8, 4, 128, 128),
    "llama 1b": AttentionShape(8, 4, 64, 64),
    "llama 70b": AttentionShape(8, 8, 128, 128),
    "phi 3": AttentionShape(32, 1, 96, 96),
    "gemma 2": AttentionShape(8, 2, 256, 256, frozenset({"has_window", "has_softcap"})),
    "gpt-oss": AttentionShape(8, 8, 64, 64, frozenset({"has_window", "has_sinks"})),
    "bloom": AttentionShape(32, 1, 128, 128, frozenset({"has_alibi"})),
    # Latent attention, absorbed: all heads share the latents.
    "deepseek v2 lite": AttentionShape(1, 16, 576, 512),
    "deepseek v3": AttentionShape(1, 128, 576, 512),
    "starcoder": AttentionShape(1, 48, 128, 128),
    "falcon 7b": AttentionShape(1, 71, 64, 64),
}
#: Inputs and outputs of matrices, by name.
MATRICES = {
    "8b q": (4096, 4096),
    "8b down": (14336, 4096),
    "8b up": (4096, 14336),
    "1b kv": (2048, 512),
    "8b head": (4096, 128_256),
}
#: A mixture of experts as Qwen 3's and its kind have it: inputs, inner size, and which are chosen.
EXPERTS = (2048, 768, Routing(num_experts=128, num_chosen=8, scoring=Scoring.SOFTMAX, normalised=True))
#: The stored type of weights and the size of groups, by format.
FORMATS = {"16 bits": ("", 0), "int8": ("i8", 0), "int4": ("i8", 128), "fp8": ("fp8e4nv", 0)}


def attention_kernels(shape: AttentionShape, compute: str, cache: str, capability: Capability) -> Kernels:
    """Those of layers; none if the target does not know the cache's type."""
    if not has_type(capability, cache):
        return {}
    specs = attention_specs(
        num_kv_heads=shape.num_kv_heads,
        group=shape.group,
        head_dim=shape.head_dim,
        v_head_dim=shape.v_head_dim,
        block_size=32,
        compute=compute,
        cache=cache,
        capability=capability,
        **dict.fromkeys(shape.features, True),
    )
    names = ("write", "few", "many", "merge_few", "merge_many")
    return {name: getattr(specs, name) for name in names}


def linear_kernels(matrix: tuple[int, int], weights: str, compute: str, capability: Capability) -> Kernels:
    """Those of a product, by the numbers of rows that they are for."""
    dtype, group = FORMATS[weights]
    if not has_type(capability, dtype):
        return {}
    recorder = Recorder()
    linear_launches(
        recorder,
        Matrix(*matrix, 1, dtype or compute, group),
        value("x"),
        value("weight"),
        value("out"),
        compute=compute,
        out_dtype=compute,
        capability=capability,
        max_rows=MAX_ROWS,
        scales=value("scales") if weights != "16 bits" else NOTHING,
        residual=value("residual"),
    )
    return _named(recorder)


def row_kernels(width: int, dtype: str) -> Kernels:
    """Those of a layer that are not products."""
    recorder = Recorder()
    x, out = value("x"), value("out")
    norm_launch(recorder, x, out, dim=width, epsilon=1e-5, dtype=dtype, scale=value("scale"))
    norm_launch(recorder, x, x, dim=128, epsilon=1e-5, dtype=dtype, heads=32, scale=value("scale"))
    gated_launch(recorder, Activation.SILU, x, value("up"), out, width=14336, dtype=dtype)
    tables = {"positions": value("positions"), "cosines": value("cosines"), "sines": value("sines")}
    rotate_launch(recorder, x, out, **tables, heads=32, dim=128, rotated=128, dtype=dtype)
    gather_launch(recorder, x, value("ids"), out, width=width, table_dtype=dtype, out_dtype=dtype)
    names = ("norm of rows", "norm of heads", "gated", "rotate", "gather")
    return dict(zip(names, recorder.specs, strict=True))


def expert_kernels(weights: str, compute: str, capability: Capability) -> Kernels:
    """Those of a mixture of experts."""
    dtype, group = FORMATS[weights]
    if not has_type(capability, dtype):
        return {}
    hidden, inner, routing = EXPERTS
    recorder = Recorder()
    x, out, chosen, shares = value("x"), value("out"), value("chosen"), value("shares")
    grouped = {"order": value("order"), "counts": value("counts")}
    route_launch(recorder, routing, x, chosen, shares, dtype=compute)
    group_launch(recorder, routing, chosen, **grouped)
    expert_launches(
        recorder,
        Matrix(hidden, inner, routing.num_experts, dtype or compute, group),
        x,
        value("weight"),
        out,
        num_chosen=routing.num_chosen,
        **grouped,
        x_is_shared=True,
        compute=compute,
        capability=capability,
        max_rows=MAX_ROWS,
        scales=value("scales") if weights != "16 bits" else NOTHING,
    )
    combine_launch(recorder, x, shares, out, num_chosen=routing.num_chosen, width=hidden, dtype=compute)
    return _named(recorder)


def _named(recorder: Recorder) -> Kernels:
    """Kernels by their functions and the numbers of rows that they are for."""
    return {
        f"{spec.function} {least}-{most or ''}" if least else spec.function: spec
        for spec, (least, most) in recorder.specs.items()
    }


def sampling_kernels(vocab_size: int) -> Kernels:
    """Those of sampling."""
    return sampling_specs(vocab_size, MAX_ROWS)[0]


def all_kernels(compute: str, capability: Capability) -> dict[str, KernelSpec]:
    """All kernels of all shapes that the target knows, by shape and name."""
    found: dict[str, KernelSpec] = {}

    def add(of: str, kernels: Kernels) -> None:
        found.update({f"{of}: {name}": spec for name, spec in kernels.items()})

    for name, shape in ATTENTION.items():
        for cache in (compute, "fp8e4nv"):
            add(f"{name}, {cache} cache", attention_kernels(shape, compute, cache, capability))
    found["copy of blocks"] = copy_blocks_spec()
    for name, matrix in MATRICES.items():
        for weights in FORMATS:
            add(f"{name}, {weights}", linear_kernels(matrix, weights, compute, capability))
    for weights in FORMATS:
        add(f"128 experts, {weights}", expert_kernels(weights, compute, capability))
    add("rows of 4096", row_kernels(4096, compute))
    add("sampling of 128256", sampling_kernels(128_256))
    return found
