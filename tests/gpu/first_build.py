"""What the first minutes on a GPU take with them: kernels, and engines without weights, built on a machine without one.

Owns what is built. Never touches a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tests.cuda.calls import storage
from trident_backend.engine.cuda.program_file import write_program
from trident_backend.engine.gpu.program import (
    Argument,
    AttentionKind,
    Count,
    Kernel,
    Kind,
    Launch,
    Program,
    SamplingLimits,
    StoredWeight,
    Value,
)
from trident_compiler.compiler import Progress
from trident_compiler.cuda.attention_kernels import attention_specs
from trident_compiler.cuda.builder import NOTHING, Grid, value, weight
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.linear_kernels import linear_launches
from trident_compiler.cuda.linear_tiles import Matrix
from trident_compiler.cuda.targets import Capability, has_type

#: Compiles kernels into a folder, as `kernel_compiler.compile_kernels` does.
CompileKernels = Callable[[Mapping[str, KernelSpec], Capability, Path, Progress], dict[str, Kernel]]
_COMPUTE = "bf16"
_BLOCK = 32


@dataclass(frozen=True)
class Wanted:
    """What is built.

    Args:
        attention: heads of keys and values, query heads for each, and size of a head, of each kind.
        matrices: by name: outputs, inputs, stored type, size of groups.
        max_rows: of a step.
    """

    attention: tuple[tuple[int, int, int], ...] = ((8, 4, 128), (8, 4, 64))
    matrices: Mapping[str, tuple[int, int, str, int]] = field(
        default_factory=lambda: {
            "bf16 14336x4096": (14336, 4096, "bf16", 0),
            "bf16 4096x4096": (4096, 4096, "bf16", 0),
            "int8 14336x4096": (14336, 4096, "i8", 0),
            "int4 14336x4096": (14336, 4096, "i8", 128),
            "fp8 14336x4096": (14336, 4096, "fp8e4nv", 0),
        }
    )
    max_rows: int = 8192


@dataclass
class _Recorder:
    """A `LaunchMaker` that keeps launches, values and weights under names of one case."""

    case: str
    kernels: dict[KernelSpec, str]
    launches: list[Launch] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    weights: list[StoredWeight] = field(default_factory=list)
    counted: Count = Count.TOKENS

    def value(self, width: int, dtype: str, count: Count) -> str:
        return self.named(f"parts{len(self.values)}", width, dtype, count)

    def named(self, name: str, width: int, dtype: str, count: Count) -> str:
        self.values.append(Value(f"{self.case}:{name}", count, width, dtype))
        return self.values[-1].name

    def weight(self, name: str, array: Callable[[], npt.NDArray[Any]] | npt.NDArray[Any], dtype: str) -> str:
        raise AssertionError("products store no weights of their own")

    def stored(self, name: str, dtype: str, shape: tuple[int, ...]) -> Argument:
        num_bytes = storage(dtype).itemsize
        for size in shape:
            num_bytes *= size
        self.weights.append(StoredWeight(f"{self.case}:{name}", dtype, shape, 0, num_bytes))
        return weight(self.weights[-1].name)

    def launch(
        self, spec: KernelSpec, grid: Grid, arguments: Mapping[str, Argument], least: int = 0, most: int = 0
    ) -> None:
        name = self.kernels.setdefault(spec, f"{spec.function}.{len(self.kernels)}")
        self.launches.append(Launch(name, grid, arguments, least, most))


def build(
    folder: Path,
    capability: Capability,
    progress: Progress,
    compile_kernels: CompileKernels,
    wanted: Wanted | None = None,
) -> None:
    """Write a program of nothing but kernels to be tried into a new folder."""
    wanted = wanted or Wanted()
    kernels: dict[KernelSpec, str] = {}
    kinds = tuple(_kind(shape, capability, kernels) for shape in wanted.attention)
    recorders = [
        _matrix(name, shape, capability, kernels, wanted.max_rows)
        for name, shape in wanted.matrices.items()
        if has_type(capability, shape[2])
    ]
    program = Program(
        vocab_size=1,
        max_seq_len=1,
        arena_bytes=0,
        values=tuple(value for each in recorders for value in each.values),
        weights=tuple(_placed([weight for each in recorders for weight in each.weights])),
        attention_kinds=kinds,
        body=tuple(launch for each in recorders for launch in each.launches),
        head=(),
        cache_dtype=_COMPUTE,
        sampling=SamplingLimits(1, 1, 1, 1, 1, ()),
    )
    folder.mkdir(parents=True)
    compiled = compile_kernels({name: spec for spec, name in kernels.items()}, capability, folder, progress)
    write_program(folder, replace(program, kernels=compiled))


def _placed(weights: list[StoredWeight]) -> list[StoredWeight]:
    """Weights one after another, as a file has them; there is none."""
    placed, offset = [], 0
    for each in weights:
        placed.append(replace(each, offset=offset))
        offset += -(-each.num_bytes // 256) * 256
    return placed


def _kind(shape: tuple[int, int, int], capability: Capability, kernels: dict[KernelSpec, str]) -> AttentionKind:
    num_kv_heads, group, dim = shape
    specs = attention_specs(
        num_kv_heads=num_kv_heads,
        group=group,
        head_dim=dim,
        v_head_dim=dim,
        block_size=_BLOCK,
        compute=_COMPUTE,
        cache=_COMPUTE,
        capability=capability,
    )

    def named(spec: KernelSpec) -> str:
        return kernels.setdefault(spec, f"{spec.function}.{len(kernels)}")

    return AttentionKind(
        num_kv_heads,
        group,
        dim,
        dim,
        0,
        specs.few_rows,
        specs.many_rows,
        write=named(specs.write),
        few=named(specs.few),
        many=named(specs.many),
        merge_few=named(specs.merge_few),
        merge_many=named(specs.merge_many),
        head_parts=specs.head_parts,
    )


def _matrix(
    case: str, shape: tuple[int, int, str, int], capability: Capability, kernels: dict[KernelSpec, str], max_rows: int
) -> _Recorder:
    out_size, in_size, dtype, group = shape
    make = _Recorder(case, kernels)
    x = value(make.named("x", in_size, _COMPUTE, Count.TOKENS))
    out = value(make.named("out", out_size, _COMPUTE, Count.TOKENS))
    matrix = make.stored("weight", dtype, (out_size, in_size // 2 if group else in_size))
    scales = NOTHING
    if dtype != _COMPUTE:
        scales = make.stored("scales", "fp32", (out_size, in_size // group) if group else (out_size,))
    linear_launches(
        make,
        Matrix(in_size, out_size, 1, dtype, group),
        x,
        matrix,
        out,
        compute=_COMPUTE,
        out_dtype=_COMPUTE,
        capability=capability,
        max_rows=max_rows,
        scales=scales,
    )
    assert all(argument.kind is not Kind.NUMBER for each in make.launches for argument in each.arguments.values())
    return make
