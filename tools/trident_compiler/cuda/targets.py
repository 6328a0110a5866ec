"""The NVIDIA GPUs that kernels are compiled for, and what they hold.

Owns the table, by compute capability. Never asks a GPU, and never imports Triton: every target is built for on any
machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_ensemble.contract.errors import BuildError

Capability = tuple[int, int]

#: Programs of one kernel that a multiprocessor is given at a time, so that it always has one that is not waiting.
PROGRAMS_EACH = 4
#: Triton's names of 8-bit floating-point types begin with this.
_FP8 = "fp8"
#: The first compute capability that converts 8-bit floating-point numbers by itself.
_FIRST_WITH_FP8: Capability = (8, 9)
_KIB = 1024


@dataclass(frozen=True)
class Target:
    """A compute capability.

    Args:
        shared_limit: bytes of shared memory that one block may have.
        num_multiprocessors: of a large GPU of this kind.
        example: a GPU of this kind, for people.
    """

    shared_limit: int
    num_multiprocessors: int
    example: str


#: By compute capability. Machine code from 9.0 on runs on GPUs of that one capability, earlier code on all of its major
#: number that are not older.
TARGETS: dict[Capability, Target] = {
    (8, 0): Target(163 * _KIB, 108, "A100"),
    (8, 6): Target(99 * _KIB, 84, "A40"),
    (8, 9): Target(99 * _KIB, 142, "L40S"),
    (9, 0): Target(227 * _KIB, 132, "H100, H200"),
    (10, 0): Target(227 * _KIB, 148, "B200"),
    (10, 3): Target(227 * _KIB, 160, "B300"),
    (12, 0): Target(99 * _KIB, 170, "RTX 5090"),
    (12, 1): Target(99 * _KIB, 48, "DGX Spark"),
}


def target_of(capability: Capability) -> Target:
    """Return what is known of a compute capability.

    Raises:
        BuildError: kernels are not compiled for it; names those that there are.
    """
    if capability not in TARGETS:
        known = ", ".join(f"{major}.{minor} ({target.example})" for (major, minor), target in TARGETS.items())
        raise BuildError(
            f"--engine cuda: there are no kernels for compute capability {capability[0]}.{capability[1]}; there are "
            f"for {known}"
        )
    return TARGETS[capability]


def shared_limit(capability: Capability) -> int:
    """Return the bytes of shared memory that one block may have.

    Raises:
        BuildError: kernels are not compiled for this compute capability.
    """
    return target_of(capability).shared_limit


def num_programs(capability: Capability) -> int:
    """Return how many programs of a kernel fill a large GPU of this kind.

    Raises:
        BuildError: kernels are not compiled for this compute capability.
    """
    return target_of(capability).num_multiprocessors * PROGRAMS_EACH


def has_type(capability: Capability, dtype: str) -> bool:
    """Return whether a GPU of this kind computes with a type, by Triton's name, such as `bf16` or `*fp8e4nv`."""
    return capability >= _FIRST_WITH_FP8 or not dtype.removeprefix("*").startswith(_FP8)
