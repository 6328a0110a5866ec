"""The core's state between two steps, as plain values.

Owns their meaning. Never counts: the loop and the service fill them in, the gauges show them.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.sequences.step_time import StepTime


@dataclass(frozen=True)
class LoopStats:
    """A consistent view of the core between two steps; the service adds `num_open`.

    Args:
        num_open: sequences whose request has no final answer.
        num_running: sequences with room in the KV cache.
        num_waiting: sequences without.
        num_interrupted: of these, sequences that have run before and were preempted.
        num_paused: running sequences whose reader is behind.
        num_context: running sequences whose prompt is being computed.
        num_used_blocks: KV blocks in use.
        num_free_blocks: KV blocks that no sequence uses.
        num_reused_blocks: KV blocks that sequences have found filled, so far.
        num_steps: steps so far.
        step_time: what a step costs, as far as it has been learned.
    """

    num_open: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_interrupted: int = 0
    num_paused: int = 0
    num_context: int = 0
    num_used_blocks: int = 0
    num_free_blocks: int = 0
    num_reused_blocks: int = 0
    num_steps: int = 0
    step_time: StepTime | None = None
