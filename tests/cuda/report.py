"""`python -m tests.cuda.report`: what every kernel of models of published shapes takes of every GPU.

Owns the table: registers, spills, shared memory, and the instructions of the inner loop, from the machine code. Never
judges; the limits are those of test_kernel_limits.py.
"""

from __future__ import annotations

import argparse
import re
import sys
import time

from tests.cuda.kernel_list import all_kernels
from tests.cuda.machine_code import Resources, resources
from trident_compiler.cuda.kernel_compiler import answers, describe, triton_version
from trident_compiler.cuda.kernel_process import Failure
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.targets import TARGETS, Capability, shared_limit
from trident_ensemble.contract.manifest import sm_target

_HEADER = (
    "kernel",
    "tile",
    "warps",
    "regs",
    "stack",
    "shared",
    "matrix",
    "loop",
    "mma",
    "cp16",
    "cp<16",
    "ldg",
    "local",
    "sync",
    "issue",
    "FLOP/c",
)
_TILES = ("ROWS", "KEYS", "TILE_T", "TILE_N", "TILE_K", "BLOCK", "TILE", "CHUNK", "PARTS")
_LEGEND = (
    "regs, stack: of a thread, registers and bytes; shared: bytes of a block. Of a turn of the inner loop, for a warp: "
    "instructions (loop), matrix instructions (mma), copies to shared memory of 16 bytes (cp16) and of less (cp<16), "
    "loads to registers (ldg), spills (local), barriers and waits (sync). issue: cycles that a multiprocessor takes to "
    "issue a turn of a program; FLOP/c: operations of a turn by these."
)
#: Instructions that a multiprocessor issues in a cycle.
_ISSUED = 4


class Lines:
    """A progress on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self._total = 0

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        self._total = total

    def reached(self, done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {self._total} kernels", end="", file=sys.stderr, flush=True)


def row(name: str, spec: KernelSpec, taken: Resources) -> tuple[str, ...]:
    """One line of the table."""
    constants, loop = dict(spec.constants), taken.loop
    tile = "x".join(str(constants[key]) for key in _TILES if constants.get(key, 1) != 1)
    cycles = loop.num_instructions * spec.num_warps / _ISSUED
    flops = flops_of_a_turn(spec)
    numbers = (
        spec.num_warps, taken.registers, taken.stack_bytes, taken.shared_bytes, "+".join(taken.matrix) or "-",
        loop.num_instructions, loop.num_matrix, loop.num_copies, loop.num_narrow_copies, loop.num_loads,
        loop.num_local, loop.num_waits, f"{cycles:.0f}", f"{flops / cycles:.0f}" if flops and cycles else "-",
    )  # fmt: skip
    return (name, tile, *map(str, numbers))


def flops_of_a_turn(spec: KernelSpec) -> int:
    """Floating-point operations of one turn of a program's inner loop; 0 where that is no product."""
    constants = dict(spec.constants)
    if spec.function == "attention.attend":
        return int(2 * constants["ROWS"] * constants["KEYS"] * (constants["DIM_P"] + constants["DIM_V_P"]))
    if spec.function in ("linear.linear", "experts.linear"):
        return int(2 * constants["TILE_T"] * constants["TILE_N"] * constants["TILE_K"])
    return 0


def report(capability: Capability, compute: str, pattern: str) -> list[str]:
    """The table of one GPU; kernels that do not compile have a line of their own."""
    kernels = {name: spec for name, spec in all_kernels(compute, capability).items() if re.search(pattern, name)}
    begin = time.monotonic()
    taken: dict[KernelSpec, Resources] = {}
    failures: list[str] = []
    for spec, answer in answers(list(dict.fromkeys(kernels.values())), capability, Lines()):
        if isinstance(answer, Failure):
            failures.append(f"{describe(spec)}: {answer.words}")
        else:
            taken[spec] = resources(answer)
    lines = [_HEADER, *(row(name, spec, taken[spec]) for name, spec in kernels.items() if spec in taken)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    size = sum(each.cubin_bytes for each in taken.values())
    head = (
        f"{sm_target(capability)} ({TARGETS[capability].example}), {compute}: {len(taken)} kernels, {size} bytes, "
        f"{time.monotonic() - begin:.0f} s; a block has {shared_limit(capability)} bytes of shared memory at most"
    )
    table = [
        "  ".join(_aligned(line[column], widths[column], column) for column in range(len(widths))) for line in lines
    ]
    return [head, *table, *(f"FAILED: {failure}" for failure in failures)]


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.report", description=__doc__)
    parser.add_argument(
        "--target", action="append", default=[], help="a compute capability, such as 9.0; all by default"
    )
    parser.add_argument("--compute", default="bf16", choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--only", default="", help="a regular expression on the names of kernels, such as '8b.*few'")
    args = parser.parse_args(arguments)
    by_name = {f"{major}.{minor}": (major, minor) for major, minor in TARGETS}
    if unknown := [name for name in args.target if name not in by_name]:
        parser.error(f"--target: {unknown[0]} is none of {', '.join(by_name)}")
    print(f"Triton {triton_version()}. {_LEGEND}")
    for name, capability in by_name.items():
        if not args.target or name in args.target:
            print("", *report(capability, args.compute, args.only), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
