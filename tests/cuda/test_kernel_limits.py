"""What the kernels that most of the time is spent in take of every GPU, held against stated limits.

`python -m tests.cuda.report` shows the same of all kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.cuda.kernel_list import ATTENTION, MATRICES, Kernels, attention_kernels, expert_kernels, linear_kernels
from tests.cuda.machine_code import Resources, resources
from tests.fakes.progress import SilentProgress
from trident_compiler.cuda.kernel_compiler import compile_specs
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.targets import Capability, shared_limit

_KIB = 1024
#: The matrix instructions of tiles with many rows, by target; those of 16 rows are `mma` everywhere.
LARGE_PRODUCTS = {
    (8, 0): "mma",
    (8, 6): "mma",
    (8, 9): "mma",
    (9, 0): "wgmma",
    (10, 0): "tcgen05",
    (12, 0): "mma",
}


@dataclass(frozen=True)
class Limits:
    """What a kernel may take.

    Args:
        registers: of a thread. 168 let three blocks of four warps run at a time, 255 one of eight.
        stack_bytes: of a thread.
        shared_bytes: of a block.
        num_local: accesses to local memory in a turn of a loop with matrix instructions.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    num_local: int = 0


LIMITS = {
    "attend few, D 128": Limits(168, 0, 40 * _KIB),
    "attend few, D 64": Limits(128, 0, 22 * _KIB),
    # Of some 600 instructions.
    "attend many, D 128": Limits(255, 80, 98 * _KIB, num_local=6),
    "attend many, D 64": Limits(192, 0, 50 * _KIB),
    "linear few": Limits(96, 0, 62 * _KIB),
    "linear many": Limits(255, 0, 130 * _KIB),
}

#: Of models where one head of keys has many query heads, by name and tile.
WIDE_LIMITS = {
    "deepseek v2 lite few": Limits(255, 0, 134 * _KIB),
    "deepseek v2 lite many": Limits(255, 0, 168 * _KIB),
    "deepseek v3 few": Limits(255, 0, 168 * _KIB),
    "starcoder many": Limits(192, 0, 98 * _KIB),
    "falcon 7b few": Limits(128, 0, 50 * _KIB),
}


def kernels_of(capability: Capability) -> Kernels:
    """The kernels of the table."""
    found: Kernels = {}
    for dim, model in ((128, "llama 8b"), (64, "llama 1b")):
        kernels = attention_kernels(ATTENTION[model], "bf16", "bf16", capability)
        found |= {f"attend {size}, D {dim}": kernels[size] for size in ("few", "many")}
    products = linear_kernels(MATRICES["8b head"], "16 bits", "bf16", capability)
    products = {name: spec for name, spec in products.items() if spec.function == "linear.linear"}
    found["linear few"], *_, found["linear many"] = products.values()
    return found


def num_copies(spec: KernelSpec) -> int:
    """Copies of 16 bytes by which a thread has its part of a turn's loads in bf16."""
    constants = dict(spec.constants)
    if spec.function == "attention.attend":
        numbers = constants["KEYS"] * (constants["DIM_P"] + constants["DIM_V_P"])
    else:
        numbers = (constants["TILE_T"] + constants["TILE_N"]) * constants["TILE_K"]
    return int(numbers * 2 // 16 // (32 * spec.num_warps))


def excesses(name: str, taken: Resources, capability: Capability) -> list[str]:
    """What of a kernel is beyond its limits."""
    limits = {**LIMITS, **WIDE_LIMITS}[name]
    each = {
        "registers": (taken.registers, limits.registers),
        "bytes of stack": (taken.stack_bytes, limits.stack_bytes),
        "bytes of shared memory": (taken.shared_bytes, min(limits.shared_bytes, shared_limit(capability))),
        "accesses to local memory in a loop": (taken.loop.num_local, limits.num_local),
    }
    return [f"{name}: {has} {what}, the limit is {most}" for what, (has, most) in each.items() if has > most]


@pytest.mark.parametrize("capability", LARGE_PRODUCTS, ids=lambda each: f"sm_{each[0]}{each[1]}")
def test_kernels_keep_their_limits_and_load_in_the_background(capability: Capability) -> None:
    """No spills, shared memory for several blocks, copies of 16 bytes, and the target's matrix instructions."""
    kernels = kernels_of(capability)
    compiled = compile_specs(list(kernels.values()), capability, SilentProgress())
    taken = {name: resources(compiled[spec]) for name, spec in kernels.items()}
    assert set(taken) == set(LIMITS)
    assert [line for name, each in taken.items() for line in excesses(name, each, capability)] == []
    copies = {name: each.loop.num_copies for name, each in taken.items()}
    assert copies == {name: num_copies(spec) for name, spec in kernels.items()}
    # Numbers of blocks may be loaded ahead, too; they are few.
    narrow = {name: each.loop.num_narrow_copies for name, each in taken.items()}
    assert all(number <= ("attend" in name) for name, number in narrow.items()), narrow
    large = LARGE_PRODUCTS[capability]
    assert {name: each.matrix for name, each in taken.items()} == {
        name: ("mma" if "few" in name else large,) for name in LIMITS
    }


@pytest.mark.parametrize(
    ("capability", "names"),
    [((8, 6), ["deepseek v3 few"]), ((9, 0), list(WIDE_LIMITS))],
    ids=lambda each: f"sm_{each[0]}{each[1]}" if isinstance(each, tuple) else "",
)
def test_kernels_of_groups_of_many_heads_keep_their_limits(capability: Capability, names: list[str]) -> None:
    """Latent attention, and multi-query attention."""
    kernels: Kernels = {}
    for name in names:
        model, _, size = name.rpartition(" ")
        kernels[name] = attention_kernels(ATTENTION[model], "bf16", "bf16", capability)[size]
    compiled = compile_specs(list(kernels.values()), capability, SilentProgress())
    taken = {name: resources(compiled[spec]) for name, spec in kernels.items()}
    assert [line for name, each in taken.items() for line in excesses(name, each, capability)] == []


def test_weights_of_four_bits_are_unpacked_by_words() -> None:
    """A turn of experts' products has no more instructions than one of other products by much."""
    kernels = {name: spec for name, spec in expert_kernels("int4", "bf16", (9, 0)).items() if ".linear" in name}
    compiled = compile_specs(list(kernels.values()), (9, 0), SilentProgress())
    numbers = {name: resources(compiled[spec]).loop.num_instructions for name, spec in kernels.items()}
    assert max(numbers.values()) <= 450, numbers
