"""The thread that owns the engine core.

Owns the core and the inbox through which others reach it. Never sends a response: each step's events go to whoever was
named as their receiver; and never goes on after a failure that nobody foresaw: whoever was named for that is told.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable

from trident_backend.core import EngineCore
from trident_backend.metrics.loop_stats import LoopStats
from trident_backend.metrics.records import RequestRecord, StepRecord, request_record, step_record
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import Advance, StepResult
from trident_backend.serving.events import Command, TokenEvent
from trident_ensemble.contract.errors import CancelledError, DrainingError, EngineLostError, TridentError
from trident_ensemble.contract.failures import log_failure

#: Takes what was measured, on the loop's thread.
Recorder = Callable[[StepRecord | RequestRecord], None]


class EngineLoop:
    """Runs steps as long as there is work.

    Args:
        core: handed over; nobody else may touch it afterwards.
        emit: takes the events of a step, on this loop's thread.
        record: takes what was measured, on this loop's thread.
        on_fatal: called on this loop's thread, with what was raised, when the loop cannot go on. Nothing of the core
            can be relied on then, so its sequences get no further events: whoever answers must end their requests.
    """

    def __init__(
        self,
        core: EngineCore,
        emit: Callable[[list[TokenEvent]], None],
        record: Recorder,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._core = core
        self._emit = emit
        self._record = record
        self._on_fatal = on_fatal
        self._inbox: queue.SimpleQueue[tuple[Command, Sequence] | None] = queue.SimpleQueue()
        self._num_steps = 0
        self._num_failures = 0
        self.stats = LoopStats(num_free_blocks=core.kv_cache.num_free)
        self._thread = threading.Thread(target=self._run, name="trident-engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def tell(self, command: Command, sequence: Sequence) -> None:
        """Ask something of a sequence; from any thread. What no longer applies is ignored."""
        self._inbox.put((command, sequence))

    def stop(self) -> None:
        """End the loop after its current step; whatever it still holds ends with a `DrainingError`."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            idle = True
            while self._take_inbox(wait=idle):
                result = self._core.step()
                idle = not result.output.chunks and not result.awaits_masks
                self._report(result)
            self._end_all(DrainingError("the server is shutting down"))
        except BaseException as error:  # the last line of defence: a loop that is gone must not look alive
            self._on_fatal(error)

    def _take_inbox(self, *, wait: bool) -> bool:
        """Obey all that was asked since the last step; False when asked to stop."""
        if wait:
            self._publish_stats()
        try:
            message = self._inbox.get(block=wait, timeout=self._wait_timeout() if wait else None)
            while message is not None:
                self._handle(*message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            self._emit_step(())
            return True
        return False

    def _wait_timeout(self) -> float | None:
        """Seconds until something is due though nobody asks for it."""
        deadline = self._core.scheduler.next_deadline
        return None if deadline == math.inf else max(0.0, deadline - self._core.clock())

    def _handle(self, command: Command, sequence: Sequence) -> None:
        if sequence.finish_reason is not None:
            return  # an abort may overtake the addition, and anything the end
        scheduler = self._core.scheduler
        if command is Command.ADD:
            scheduler.add(sequence, self._core.clock())
        elif command is Command.ABORT:
            scheduler.finish(sequence, FinishReason.CANCELLED, CancelledError("the request was cancelled"))
        elif command is Command.STOP:
            scheduler.finish(sequence, FinishReason.CANCELLED)
        else:
            sequence.paused = command is Command.PAUSE

    def _report(self, result: StepResult) -> None:
        if result.output.chunks:
            self._num_steps += 1
            self._record(step_record(result))
        self._publish_stats()
        self._emit_step(result.advances)
        if result.error is not None:
            log_failure("a step of the engine failed", result.error)
        self._num_failures = self._num_failures + 1 if result.error is not None else 0
        if isinstance(result.error, EngineLostError):
            raise result.error
        if result.error is not None and self._num_failures == _MAX_FAILURES:
            raise result.error

    def _emit_step(self, advances: Iterable[Advance]) -> None:
        """Emit new tokens and ends, and record the ends."""
        events = []
        for sequence, num_tokens, _ in advances:
            num_safe = None if sequence.stop_strings is None else sequence.stop_strings.num_safe_tokens
            events.append(
                TokenEvent(sequence.sequence_id, num_tokens, sequence.finish_reason, sequence.error, num_safe)
            )
        told = {event.sequence_id for event in events if event.finish_reason is not None}
        for sequence in self._core.scheduler.take_ended():
            self._record(request_record(sequence, self._core.clock()))
            if sequence.error is not None and sequence.error.__cause__ is not None:
                log_failure(str(sequence.error), sequence.error.__cause__)
            if sequence.sequence_id not in told:
                events.append(TokenEvent(sequence.sequence_id, 0, sequence.finish_reason, sequence.error))
        if events:
            self._emit(events)

    def _publish_stats(self) -> None:
        scheduler, kv_cache = self._core.scheduler, self._core.kv_cache
        self.stats = LoopStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_interrupted=sum(sequence.num_preemptions > 0 for sequence in scheduler.waiting),
            num_paused=sum(sequence.paused for sequence in scheduler.running),
            num_context=sum(sequence.num_remaining_tokens > 1 for sequence in scheduler.running),
            num_used_blocks=kv_cache.num_used,
            num_free_blocks=kv_cache.num_free,
            num_reused_blocks=kv_cache.num_reused,
            num_steps=self._num_steps,
            step_time=self._core.step_times.fitted,
        )

    def _end_all(self, error: TridentError) -> None:
        scheduler = self._core.scheduler
        while not self._inbox.empty():
            message = self._inbox.get()
            if message is not None:
                self._handle(*message)
        for sequence in [*scheduler.running, *scheduler.waiting]:
            scheduler.finish(sequence, FinishReason.CANCELLED, error)
        self._publish_stats()
        self._emit_step(())


#: Consecutive failed steps after which the engine is held to be broken.
_MAX_FAILURES = 3
