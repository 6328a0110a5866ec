"""The memory on the device that the launches of a step write: intermediate values, parts of attention, logits.

Owns these allocations and their sizes. Never owns what outlives a step: weights and the KV cache lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trident_backend.engine.gpu.attention_plan import PlanBounds
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.program import AttentionKind, Program


class Partials(NamedTuple):
    """The addresses where tiles put what they have found in a piece of their keys, float32.

    Args:
        out: `[partials, kv_heads, rows, v_head_dim]`.
        stats: `[partials, kv_heads, rows, 2]`.
    """

    out: int
    stats: int


class StepMemory:
    """Memory for any step. Layers of all kinds of attention share what partial results are written to.

    Args:
        device: whose memory.
        program: what runs.
        bounds: of the largest step, for each of the program's kinds of attention.
        max_rows: rows of logits at most.
    """

    def __init__(self, device: Device, program: Program, bounds: Sequence[PlanBounds], max_rows: int) -> None:
        self._device = device
        self._sizes = sizes_of(program, bounds, max_rows)
        with freed_on_failure() as stack:
            self._addresses = {}
            for name, size in self._sizes.items():
                self._addresses[name] = device.allocate(max(1, size))
                stack.callback(device.free, self._addresses[name])
        self._resources = stack

    @property
    def arena(self) -> int:
        """The address that values' offsets count from."""
        return self._addresses["activations"]

    @property
    def logits(self) -> int:
        """The address of `[max_rows, vocab_size]`, float32."""
        return self._addresses["logits"]

    @property
    def few(self) -> Partials:
        """Where small tiles put their parts."""
        return Partials(self._addresses["small tiles"], self._addresses["small tiles' sums"])

    @property
    def many(self) -> Partials:
        """Where large tiles put their parts."""
        return Partials(self._addresses["large tiles"], self._addresses["large tiles' sums"])

    def poison(self) -> None:
        """Enqueue that everything becomes NaN, so that what is read before it is written shows."""
        for name, size in self._sizes.items():
            self._device.fill_nan(self._addresses[name], size)

    def close(self) -> None:
        """Free the memory."""
        self._resources.close()


def sizes_of(program: Program, bounds: Sequence[PlanBounds], max_rows: int) -> dict[str, int]:
    """Return the bytes of each part, by its name for people."""
    sizes = {"activations": program.arena_bytes, "logits": max_rows * program.vocab_size * 4}
    for kind, most in zip(program.attention_kinds, bounds, strict=True):
        for name, size in _partial_sizes(kind, most).items():
            sizes[name] = max(size, sizes.get(name, 0))
    return sizes


def _partial_sizes(kind: AttentionKind, bounds: PlanBounds) -> dict[str, int]:
    few = bounds.partials_few * kind.num_programs * kind.few_rows * 4
    many = bounds.partials_many * kind.num_programs * kind.many_rows * 4
    return {
        "small tiles": few * kind.v_head_dim,
        "small tiles' sums": few * 2,
        "large tiles": many * kind.v_head_dim,
        "large tiles' sums": many * 2,
    }
