"""What a compiled kernel takes of a multiprocessor, and what its inner loop is made of, read from its machine code.

Owns the reading, by the disassembler that comes with Triton. Never compiles, and never judges.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trident_compiler.cuda.kernel_process import CompiledKernel

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")
#: Behind the end lies code that is seldom run, which jumps back.
_END = "EXIT"


@dataclass(frozen=True)
class Loop:
    """The longest loop that has matrix instructions and copies to shared memory, or one of these, or none.

    Args:
        num_instructions: in one turn of a warp.
        num_matrix: of them, matrix instructions.
        num_copies: asynchronous copies of 16 bytes from global to shared memory.
        num_narrow_copies: and of fewer bytes.
        num_loads: loads from global memory to registers.
        num_local: accesses to local memory, where registers spill to, of whichever such loop has most.
        num_waits: barriers and waits.
    """

    num_instructions: int = 0
    num_matrix: int = 0
    num_copies: int = 0
    num_narrow_copies: int = 0
    num_loads: int = 0
    num_local: int = 0
    num_waits: int = 0


@dataclass(frozen=True)
class Resources:
    """What a kernel takes.

    Args:
        registers: of a thread.
        stack_bytes: of a thread; registers spill to it.
        shared_bytes: of a block, static and dynamic.
        cubin_bytes: the file's size.
        matrix: the kinds of matrix instructions, by PTX: `mma`, `wgmma`, `tcgen05`.
        loop: its inner loop.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    cubin_bytes: int
    matrix: tuple[str, ...]
    loop: Loop


def resources(kernel: CompiledKernel) -> Resources:
    """Read a kernel's machine code."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.cubin)
        usage = _USAGE.search(_run("cuobjdump", "-res-usage", str(cubin)))
        assert usage, "cuobjdump says how many registers a kernel takes"
        registers, stack, static, local = map(int, usage.groups())
        loop = _loop(_run("nvdisasm", "-c", str(cubin)))
    kinds = {"mma": r"\bmma\.sync", "wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma"}
    matrix = tuple(name for name, pattern in kinds.items() if re.search(pattern, kernel.ptx))
    return Resources(registers, stack + local, static + kernel.shared_bytes, len(kernel.cubin), matrix, loop)


def _run(tool: str, *arguments: str) -> str:
    found = importlib.util.find_spec("triton")
    assert found is not None, "Triton is installed"
    assert found.submodule_search_locations, "Triton is a package"
    path = Path(found.submodule_search_locations[0]) / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def _loop(text: str) -> Loop:
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        if instruction := _INSTRUCTION.search(line):
            instructions.append(instruction[1])
    end_of_all = max((at for at, instruction in enumerate(instructions) if instruction.startswith(_END)), default=0)
    loops = [
        instructions[labels[branch[1]] : end + 1]
        for end, instruction in enumerate(instructions[:end_of_all])
        if (branch := _BRANCH.search(instruction)) and labels.get(branch[1], end) < end
    ]
    if not loops:
        return Loop()
    inner = [loop for loop in loops if _count(loop, "MMA")] or loops
    body = max([loop for loop in inner if _count(loop, "LDGSTS")] or inner, key=len)
    copies = _count(body, r"LDGSTS\S*\.128")
    return Loop(
        len(body),
        _count(body, "MMA"),
        copies,
        _count(body, "LDGSTS") - copies,
        _count(body, r"\bLDG\b"),
        max(_count(loop, r"\b(?:LDL|STL)\b") for loop in inner),
        _count(body, r"\b(?:BAR|DEPBAR|SYNCS|WARPGROUP|WARPSYNC)\b"),
    )


def _count(instructions: list[str], pattern: str) -> int:
    return sum(bool(re.search(pattern, instruction)) for instruction in instructions)
