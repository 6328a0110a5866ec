"""The core's one loop body: schedule, execute, sample, update.

Owns every sequence and the KV cache, and is used by one thread. Never answers a request: it returns what happened.
"""

from __future__ import annotations

from collections.abc import Callable

from trident_backend import batch
from trident_backend.engine.protocol import Engine
from trident_backend.guided.mask_worker import MaskWorker
from trident_backend.kv.cache import make_kv_cache
from trident_backend.sampling.sampler import Sampler
from trident_backend.scheduling.scheduler import Scheduler
from trident_backend.sequences.sequence import FinishReason
from trident_backend.sequences.step_time import StepTimeModel
from trident_backend.sequences.steps import StepResult
from trident_ensemble.contract.errors import EngineError
from trident_ensemble.contract.settings import CoreSettings, check_limits


class EngineCore:
    """Sequences in, tokens out, one step at a time.

    Args:
        engine: computes the steps.
        settings: how they are scheduled.
        clock: seconds, never going back.
    """

    def __init__(self, engine: Engine, settings: CoreSettings, clock: Callable[[], float]) -> None:
        spec = engine.spec
        self.kv_cache = make_kv_cache(spec, reuse=settings.enable_kv_cache_reuse)
        self.step_times = StepTimeModel()
        check_limits(settings, spec.max_num_seqs, spec.max_num_tokens)
        num_tokens = settings.token_budget or spec.max_num_tokens
        self.scheduler = Scheduler(self.kv_cache, spec.max_num_seqs, num_tokens, settings, self.step_times)
        self.clock = clock
        self._engine = engine
        self._sampler = Sampler(spec.vocab_size)
        self._masks = MaskWorker(spec.vocab_size)

    def step(self) -> StepResult:
        """Advance every sequence that can run; a failed step ends the sequences it held, and no others."""
        began = self.clock()
        for sequence, error in self._masks.take_ready():
            self.scheduler.resume(sequence, error)
        output = self.scheduler.schedule(began)
        if not output.chunks:
            return StepResult(output, awaits_masks=self._masks.wait_late())
        masks = self._masks.begin(output.rows)
        try:
            logits = self._engine.execute(batch.pack(output, self.kv_cache.block_size))
            choices = self._sampler.choose(logits, output.rows, masks())
        except EngineError as error:
            masks()
            for chunk in output.chunks:
                self.scheduler.finish(chunk.sequence, FinishReason.ERROR, _failed_step())
            return StepResult(output, seconds=self.clock() - began, error=error)
        now = self.clock()
        return StepResult(
            output, self.scheduler.update(output, choices, now, now - began, late=self._masks.late), now - began
        )

    def close(self) -> None:
        """Free the engine, and let the thread that fills masks end."""
        self._masks.close()
        self._engine.close()


def _failed_step() -> EngineError:
    return EngineError("a step of the engine failed; the server's log says why")
