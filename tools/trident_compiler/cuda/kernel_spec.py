"""A kernel as it is asked for: its source, types, constants, and how a block of it is divided.

Owns these values, which are equal where the kernels are. Never imports Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class KernelSpec:
    """A kernel to compile.

    Args:
        function: `module.function` in `trident_compiler.cuda.kernels`.
        types: of the parameters that are not constants, by name: Triton's, such as `*bf16` or `i32`. Every address is
            a multiple of 16 bytes.
        constants: of all other parameters, by name.
        num_warps: of a block.
        num_stages: how far loads run ahead.
    """

    function: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | float | bool], ...]
    num_warps: int = 4
    num_stages: int = 2

    @classmethod
    def of(
        cls,
        function: str,
        types: Mapping[str, str],
        constants: Mapping[str, int | float | bool],
        num_warps: int = 4,
        num_stages: int = 2,
    ) -> KernelSpec:
        """Return the spec with parts in a canonical order."""
        return cls(function, tuple(sorted(types.items())), tuple(sorted(constants.items())), num_warps, num_stages)
