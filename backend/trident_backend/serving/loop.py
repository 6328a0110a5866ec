"""The thread that owns the engine core.

Owns the core, the inbox through which other threads reach it, and what is done while the engine computes. Never sends a
response: it hands each step's events to their receiver. Never goes on after a failure that has no handler: it says so
and ends.
"""

from __future__ import annotations

import concurrent.futures
import math
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeAlias

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
#: A command for a sequence; a request for statistics; or None, which only wakes the loop.
_Message: TypeAlias = tuple[Command, Sequence] | Future[LoopStats] | None


class EngineLoop:
    """Runs steps as long as there is work.

    While the engine computes a step, the loop emits and records the step before it, and takes new sequences. Whatever
    would end a sequence waits until the step has been collected, as the engine uses the KV blocks of those in it.

    Args:
        core: handed over; no other thread may touch it afterwards.
        emit: takes the events of a step, on this loop's thread.
        record: takes what was measured, on this loop's thread.
        on_fatal: called on this loop's thread, with what was raised, when the loop cannot go on. The core's state
            cannot be relied on then and its sequences get no further events, so it must have their requests ended.
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
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._postponed: list[tuple[Command, Sequence]] = []
        self._stopping = False
        self._num_steps = 0
        self._num_failures = 0
        self._last_stats = self._look()
        self._thread = threading.Thread(target=self._run, name="trident-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def tell(self, command: Command, sequence: Sequence) -> None:
        """Send a command for a sequence; from any thread. A command for a sequence that has ended is ignored."""
        self._inbox.put((command, sequence))

    def stats(self) -> LoopStats:
        """Return how the core stands between two steps; from any thread but the loop's own.

        The loop counts when it is asked, and answers within a step. If it does not answer within a second, or has
        ended, what it last counted is returned.
        """
        if self._thread.is_alive():
            asked: Future[LoopStats] = Future()
            self._inbox.put(asked)
            with suppress(concurrent.futures.TimeoutError):
                return asked.result(_STATS_S)
        return self._last_stats

    def stop(self) -> None:
        """End the loop after its current step; every sequence it still holds ends with a `DrainingError`."""
        self._stopping = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            result = None
            while self._take_messages(wait=result is None or result.is_idle):
                try:
                    step = self._core.submit()
                finally:
                    self._report(result)
                if step.output.chunks:  # else the loop may wait next, for just these messages
                    self._take_early_messages()
                result = self._core.collect(step)
                self._check(result)
            self._report(result)
            self._end_all(DrainingError("the server is shutting down"))
        except BaseException as error:  # the last line of defence: a loop that is gone must not look alive
            self._on_fatal(error)

    def _take_messages(self, *, wait: bool) -> bool:
        """Handle all messages, waiting for one if asked to; return whether the loop goes on.

        No step may be in flight.
        """
        postponed, self._postponed = self._postponed, []
        for command, sequence in postponed:
            self._handle(command, sequence)
        for message in self._drain(self._wait_timeout() if wait and not postponed else 0.0):
            self._take(message)
        return not self._stopping

    def _take_early_messages(self) -> None:
        """Handle, while a step is in flight, the messages that end no sequence of it, and emit the refusals."""
        for message in self._drain(0.0):
            if isinstance(message, tuple) and message[0] in _ENDING:
                self._postponed.append(message)
            else:
                self._take(message)
        self._emit_events(())

    def _drain(self, timeout: float | None) -> list[_Message]:
        """Return all messages that have come, after waiting `timeout` seconds (None: as long as it takes) for one."""
        messages = []
        with suppress(queue.Empty):
            messages.append(self._inbox.get(block=timeout != 0, timeout=timeout))
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def _wait_timeout(self) -> float | None:
        """Return the seconds until a deadline passes; None if there is no deadline."""
        deadline = self._core.scheduler.next_deadline
        return None if deadline == math.inf else max(0.0, deadline - self._core.clock())

    def _take(self, message: _Message) -> None:
        if isinstance(message, Future):
            self._last_stats = self._look()
            message.set_result(self._last_stats)
        elif message is not None:
            self._handle(*message)

    def _handle(self, command: Command, sequence: Sequence) -> None:
        if sequence.finish_reason is not None:
            return  # an abort may overtake the addition, and any command may come after the end
        scheduler = self._core.scheduler
        if command is Command.ADD:
            scheduler.add(sequence, self._core.clock())
        elif command is Command.ABORT:
            scheduler.finish(sequence, FinishReason.CANCELLED, CancelledError("the request was cancelled"))
        elif command is Command.STOP:
            scheduler.finish(sequence, FinishReason.CANCELLED)
        else:
            sequence.paused = command is Command.PAUSE

    def _check(self, result: StepResult) -> None:
        """Log a failed step, and raise its error if the engine cannot go on."""
        if result.error is None:
            self._num_failures = 0
            return
        log_failure("a step of the engine failed", result.error)
        self._num_failures += 1
        if isinstance(result.error, EngineLostError) or self._num_failures == _MAX_FAILURES:
            self._report(result)
            raise result.error

    def _report(self, result: StepResult | None) -> None:
        """Record and emit what came of a collected step."""
        if result is not None and result.output.chunks:
            self._num_steps += 1
            self._record(step_record(result))
        self._emit_events(() if result is None else result.advances)

    def _emit_events(self, advances: Iterable[Advance]) -> None:
        """Emit new tokens and the ends of sequences, and record the ends."""
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

    def _look(self) -> LoopStats:
        scheduler, kv_cache = self._core.scheduler, self._core.kv_cache
        return LoopStats(
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
        self._take_messages(wait=False)
        for sequence in [*scheduler.running, *scheduler.waiting]:
            scheduler.finish(sequence, FinishReason.CANCELLED, error)
        self._last_stats = self._look()
        self._emit_events(())


#: Commands that end a sequence.
_ENDING = frozenset({Command.ABORT, Command.STOP})
#: Consecutive failed steps after which the engine is held to be broken.
_MAX_FAILURES = 3
#: Seconds that statistics are waited for.
_STATS_S = 1.0
