"""The body of the core's loop: schedule and submit a step, then collect it, sample and update.

Owns every sequence and the KV cache, and is used by one thread. Never answers a request: it returns what happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trident_backend import batch
from trident_backend.engine.protocol import Engine
from trident_backend.guided.mask_worker import MaskWorker
from trident_backend.kv.cache import make_kv_cache
from trident_backend.sampling.sampler import Sampler
from trident_backend.scheduling.scheduler import Scheduler
from trident_backend.sequences.guide import RowMasks
from trident_backend.sequences.sequence import FinishReason
from trident_backend.sequences.step_time import StepTimeModel
from trident_backend.sequences.steps import SchedulerOutput, StepResult
from trident_ensemble.contract.errors import EngineError
from trident_ensemble.contract.settings import CoreSettings, check_limits


class SubmittedStep(NamedTuple):
    """A step that the engine computes.

    Args:
        output: what was scheduled; without chunks, nothing is computed.
        began: when scheduling began, in seconds of the core's clock.
        masks: waits for the masks of the step's rows and returns those that are there in time.
        error: why the engine could not begin, if it could not.
    """

    output: SchedulerOutput
    began: float
    masks: Callable[[], RowMasks | None] = lambda: None
    error: EngineError | None = None


class EngineCore:
    """Sequences in, tokens out, one step at a time.

    Args:
        engine: computes the steps.
        settings: how they are scheduled.
        clock: seconds, never going back.

    Raises:
        ConfigError: the settings do not go with the engine.
    """

    def __init__(self, engine: Engine, settings: CoreSettings, clock: Callable[[], float]) -> None:
        spec = engine.spec
        check_limits(settings, spec)
        self.kv_cache = make_kv_cache(spec, reuse=settings.enable_kv_cache_reuse)
        self.step_times = StepTimeModel()
        num_tokens = settings.token_budget or spec.max_num_tokens
        self.scheduler = Scheduler(self.kv_cache, spec.max_num_seqs, num_tokens, settings, self.step_times)
        self.clock = clock
        self._engine = engine
        self._sampler = Sampler(spec.vocab_size)
        self._masks = MaskWorker(spec.vocab_size)

    def step(self) -> StepResult:
        """Advance every sequence that can run, with nothing done while the engine computes."""
        return self.collect(self.submit())

    def submit(self) -> SubmittedStep:
        """Schedule a step and have the engine begin with it.

        Until `collect`, sequences may be added to the scheduler, paused and resumed; none may be ended, as the engine
        reads and writes the KV blocks of those in the step.

        Returns:
            the step, to be handed to `collect` before the next is submitted. It is empty if no sequence can run.
        """
        began = self.clock()
        for sequence, error in self._masks.take_ready():
            self.scheduler.resume(sequence, error)
        output = self.scheduler.schedule(began)
        if not output.chunks:
            return SubmittedStep(output, began)
        try:
            self._engine.submit(batch.pack(output, self.kv_cache.block_size))
        except EngineError as error:
            return SubmittedStep(output, began, error=error)
        masks = self._masks.begin(output.rows)
        self.scheduler.prepare(output)
        return SubmittedStep(output, began, masks)

    def collect(self, step: SubmittedStep) -> StepResult:
        """Wait for the engine, choose the step's tokens and take them into their sequences.

        A failed step ends the sequences it held, and no others.
        """
        output, began, masks, error = step
        if not output.chunks:
            return StepResult(output, awaits_masks=self._masks.wait_late())
        if error is None:
            try:
                choices = self._sampler.choose(self._engine.collect(), output.rows, masks())
            except EngineError as failure:
                masks()
                error = failure
        if error is not None:
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
