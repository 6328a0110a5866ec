"""The core's one loop body: schedule, execute, sample, update.

Owns every sequence and every KV block, and is used by one thread. Never answers a request: it returns what happened.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend import batch, sampling
from trident_backend.blocks import BlockManager
from trident_backend.engine.protocol import Engine
from trident_backend.scheduler import Scheduler
from trident_backend.sequence import FinishReason, Sequence
from trident_ensemble.errors import EngineError


@dataclass(frozen=True)
class StepResult:
    """What one step did: who got a token, who ended, and what the engine's failure was, if it failed."""

    num_tokens: int
    advanced: tuple[Sequence, ...]
    error: EngineError | None = None


class EngineCore:
    """Sequences in, tokens out, one step at a time."""

    def __init__(self, engine: Engine) -> None:
        spec = engine.spec
        self.blocks = BlockManager(spec.num_blocks, spec.block_size)
        self.scheduler = Scheduler(self.blocks, spec.max_num_seqs, spec.max_num_tokens)
        self._engine = engine

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something, or admit somebody."""
        return bool(self.scheduler.waiting) or any(not sequence.paused for sequence in self.scheduler.running)

    def step(self) -> StepResult:
        """Advance every sequence that can run; a failed step ends the sequences it held, and no others."""
        output = self.scheduler.schedule()
        if not output.chunks:
            return StepResult(0, ())
        try:
            logits = self._engine.execute(batch.pack(output, self.blocks.block_size))
        except EngineError as error:
            for chunk in output.chunks:
                self.scheduler.finish(chunk.sequence, FinishReason.ERROR)
            return StepResult(output.num_tokens, tuple(chunk.sequence for chunk in output.chunks), error)
        self.scheduler.update(output, sampling.sample(logits, output.sampled))
        return StepResult(output.num_tokens, output.sampled)
