"""The engine core without Triton: what the scheduler, the sampler and the compiled engine do together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from trident_backend.core import EngineCore
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import Engine, EngineSpec, StepBatch, StepLogits
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_ensemble.contract.settings import CoreSettings


@dataclass
class TimedEngine:
    """An engine that writes down how long each step took from `submit` until it was collected, in seconds."""

    engine: Engine
    seconds: list[float] = field(default_factory=list)
    _start: float = 0.0

    @property
    def spec(self) -> EngineSpec:
        return self.engine.spec

    def submit(self, batch: StepBatch) -> None:
        self._start = time.perf_counter()
        self.engine.submit(batch)

    def collect(self) -> StepLogits:
        logits = self.engine.collect()
        self.seconds.append(time.perf_counter() - self._start)
        return logits

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True)
class LoopRun:
    """What one run took.

    Args:
        seconds: of the whole run.
        outside_share: the share of generation steps in which the engine had no step: before it was submitted, and after
            it was collected.
    """

    seconds: float
    outside_share: float


class EngineLoopBench:
    """Runs batches of prompts to their end on one loaded engine."""

    def __init__(self, engine_folder: Path) -> None:
        engine, _ = load_engine(engine_folder)
        self._engine = TimedEngine(engine)

    def run(self, prompts: list[list[int]], max_tokens: int) -> LoopRun:
        """All prompts at once, greedy, `max_tokens` each."""
        core = EngineCore(self._engine, CoreSettings(enable_kv_cache_reuse=False), time.monotonic)
        for index, prompt in enumerate(prompts):
            sequence = Sequence(index, list(prompt), len(prompt), max_tokens, SamplingParams(), frozenset())
            core.scheduler.add(sequence, core.clock())
        start = time.perf_counter()
        inside, generation = 0.0, 0.0
        while core.scheduler.waiting or core.scheduler.running:
            self._engine.seconds.clear()
            step_start = time.perf_counter()
            result = core.step()
            if result.output.num_tokens == len(result.advances):
                generation += time.perf_counter() - step_start
                inside += self._engine.seconds[0]
        return LoopRun(time.perf_counter() - start, 1 - inside / generation)
