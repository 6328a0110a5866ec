"""The thread that owns the engine core.

Owns the core, the inbox through which others reach it, and the end of the process when it cannot go on. Never sends a
response: each step's events go to whoever was named as their receiver.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from trident_backend.core import EngineCore, StepResult
from trident_backend.sequence import FinishReason, Sequence
from trident_ensemble.errors import DrainingError, EngineError, TridentError


@dataclass(frozen=True)
class TokenEvent:
    """What a step did to one sequence: a new token, its end, or both; with the failure that ended it, if one did."""

    sequence_id: int
    token_id: int | None
    finish_reason: FinishReason | None
    error: TridentError | None = None


@dataclass(frozen=True)
class LoopStats:
    """A consistent look at the core between two steps; the service adds `num_open`, requests without a final answer."""

    num_open: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_paused: int = 0
    num_context: int = 0
    num_used_blocks: int = 0
    num_free_blocks: int = 0
    num_steps: int = 0
    num_step_tokens: int = 0


class Command(Enum):
    """What may be asked of a sequence in the core."""

    ADD = auto()
    ABORT = auto()
    PAUSE = auto()
    RESUME = auto()


class EngineLoop:
    """Runs steps as long as there is work.

    Args:
        core: handed over; nobody else may touch it afterwards.
        emit: takes the events of a step, on this loop's thread.
        on_fatal: called when the loop cannot go on; everything it held has been answered by then.
    """

    def __init__(
        self, core: EngineCore, emit: Callable[[list[TokenEvent]], None], on_fatal: Callable[[BaseException], None]
    ) -> None:
        self._core = core
        self._emit = emit
        self._on_fatal = on_fatal
        self._inbox: queue.SimpleQueue[tuple[Command, Sequence] | None] = queue.SimpleQueue()
        self._num_steps = 0
        self._num_failures = 0
        self.stats = LoopStats(num_free_blocks=core.blocks.num_free)
        self._thread = threading.Thread(target=self._run, name="trident-engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def tell(self, command: Command, sequence: Sequence) -> None:
        """Ask something of a sequence; from any thread. What no longer applies is ignored."""
        self._inbox.put((command, sequence))

    def stop(self) -> None:
        """End the loop after its current step; whatever it still holds is answered UNAVAILABLE."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            idle = True
            while self._take_inbox(wait=idle):
                result = self._core.step()
                idle = not result.num_tokens
                self._report(result)
            self._end_all(FinishReason.CANCELLED, DrainingError("the server is shutting down"))
        except BaseException as error:
            self._end_all(FinishReason.ERROR, EngineError(f"the engine loop died: {error!r}"))
            self._on_fatal(error)

    def _take_inbox(self, *, wait: bool) -> bool:
        """Obey all that was asked since the last step; False when asked to stop."""
        if wait:
            self._look()
        events: list[TokenEvent] = []
        while True:
            try:
                message = self._inbox.get(block=wait)
            except queue.Empty:
                break
            wait = False
            if message is None:
                return False
            self._obey(*message, events)
        if events:
            self._emit(events)
        return True

    def _obey(self, command: Command, sequence: Sequence, events: list[TokenEvent]) -> None:
        if sequence.finish_reason is not None:
            return  # an abort may overtake the addition, and anything the end
        if command is Command.ADD:
            self._core.scheduler.add(sequence)
        elif command is Command.ABORT:
            self._core.scheduler.finish(sequence, FinishReason.CANCELLED)
            events.append(TokenEvent(sequence.sequence_id, None, FinishReason.CANCELLED))
        else:
            sequence.paused = command is Command.PAUSE

    def _report(self, result: StepResult) -> None:
        if not result.num_tokens:
            return
        self._num_steps += 1
        self._look(result.num_tokens)
        failed = result.error is not None
        events = []
        for sequence in result.advanced:
            token_id = None if failed else sequence.token_ids[-1]
            events.append(TokenEvent(sequence.sequence_id, token_id, sequence.finish_reason, result.error))
        self._emit(events)
        self._num_failures = self._num_failures + 1 if failed else 0
        if result.error is not None and self._num_failures == _MAX_FAILURES:
            raise result.error

    def _look(self, num_step_tokens: int = 0) -> None:
        scheduler, blocks = self._core.scheduler, self._core.blocks
        self.stats = LoopStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_paused=sum(sequence.paused for sequence in scheduler.running),
            num_context=sum(sequence.num_remaining_tokens > 1 for sequence in scheduler.running),
            num_used_blocks=blocks.num_used,
            num_free_blocks=blocks.num_free,
            num_steps=self._num_steps,
            num_step_tokens=num_step_tokens,
        )

    def _end_all(self, reason: FinishReason, error: TridentError) -> None:
        scheduler = self._core.scheduler
        while not self._inbox.empty():
            message = self._inbox.get()
            if message is not None:
                self._obey(*message, [])
        events = []
        for sequence in [*scheduler.running, *scheduler.waiting]:
            scheduler.finish(sequence, reason)
            events.append(TokenEvent(sequence.sequence_id, None, reason, error))
        self._look()
        self._emit(events)


#: Consecutive failed steps after which the engine is held to be broken.
_MAX_FAILURES = 3
