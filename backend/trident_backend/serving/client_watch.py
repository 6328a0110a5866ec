"""Whether the clients of open answers still read: acknowledgements of chunks, and Triton's word on who is gone.

Owns which chunks are on their way, which clients are asked after, how often either is looked at, and what the engine
loop is told in consequence: pause, resume, abort. Never sends a response. Used by the answering thread alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.answers import Answer, FlowState
from trident_backend.serving.events import Command
from trident_ensemble.acknowledgements import AcknowledgementTable
from trident_ensemble.contract.errors import CancelledError
from trident_ensemble.contract.failures import internal_error

#: While a chunk waits for the acknowledgement of the one before it; longer each time that none has come.
_POLL_HELD_S = 0.002
_POLL_GROWTH = 1.25
_POLL_UNACKNOWLEDGED_S = 0.02
_POLL_CANCELLED_S = 0.1


class ClientWatch:
    """The clients of all open answers.

    An answer behind postprocessing is never asked after: through an ensemble Triton does not tell the core of a
    cancellation, and each question is a message to tritonserver and back.

    Args:
        table: holds the acknowledgements; closed with this.
        tell: the engine loop's inbox.
    """

    def __init__(self, table: AcknowledgementTable, tell: Callable[[Command, Sequence], None]) -> None:
        self.table = table
        self._tell = tell
        # Ordered sets. Answers with a chunk on its way, the one that left the longest ago first; those of them that
        # have more to send at once; and those whose clients Triton is asked after.
        self._in_flight: dict[Answer, None] = {}
        self._held: set[Answer] = set()
        self._asked: dict[Answer, None] = {}
        self._held_poll_s = _POLL_HELD_S
        self._next_question = -math.inf

    def enter(self, answer: Answer) -> None:
        """Watch the client of a new answer.

        Raises:
            Exception: it cannot be watched.
        """
        if not answer.request.output.flow_control:
            self._asked[answer] = None
        if answer.flow is not None:
            answer.column, answer.secret = self.table.open()

    def leave(self, answer: Answer) -> None:
        """Forget an answer."""
        self._in_flight.pop(answer, None)
        self._held.discard(answer)
        self._asked.pop(answer, None)
        if answer.secret:
            answer.secret = 0
            self.table.release(answer.column)

    def sent(self, answer: Answer, now: float) -> None:
        """Expect the acknowledgement of a chunk that leaves now."""
        assert answer.flow is not None
        answer.flow.sent(now)
        self._in_flight[answer] = None

    def hold(self, answer: Answer) -> None:
        """Look for an acknowledgement more often: a chunk waits for it."""
        if answer not in self._held:
            self._held.add(answer)
            self._held_poll_s = _POLL_HELD_S

    def abort(self, answer: Answer) -> None:
        """Have the loop end what has not ended; its last event makes the answer an error."""
        answer.aborted = True
        for stream in answer.streams:
            if not stream.ended:
                self._tell(Command.ABORT, stream.sequence)

    def wait_s(self, now: float) -> float:
        """Return seconds until the next look, which nothing announces."""
        wait_s = math.inf
        if self._held:
            wait_s = self._held_poll_s
        elif self._in_flight:
            wait_s = _POLL_UNACKNOWLEDGED_S
        if self._asked:
            wait_s = min(wait_s, max(0.0, self._next_question - now))
        return wait_s

    def look(self, now: float) -> list[Answer]:
        """Look at acknowledgements and cancellations; return the answers that can go on, or have failed."""
        news = self._ask(now)
        if self._in_flight:
            num_held = len(self._held)
            news += self._read_acknowledgements(now)
            if len(self._held) < num_held:
                self._held_poll_s = _POLL_HELD_S
            else:
                self._held_poll_s = min(self._held_poll_s * _POLL_GROWTH, _POLL_UNACKNOWLEDGED_S)
        return news

    def _ask(self, now: float) -> list[Answer]:
        """Ask Triton whether clients are gone, ten times a second."""
        failed: list[Answer] = []
        if not self._asked or now < self._next_question:
            return failed
        self._next_question = now + _POLL_CANCELLED_S
        for answer in self._asked:
            if answer.aborted:
                continue
            try:
                is_cancelled = answer.responder.is_cancelled()
            except BaseException as cause:
                answer.error = internal_error("the request's client could not be asked after", cause)
                failed.append(answer)
                continue
            if is_cancelled:
                self.abort(answer)
        return failed

    def _read_acknowledgements(self, now: float) -> list[Answer]:
        """Read the acknowledgements of all chunks on their way, and act on them."""
        news: list[Answer] = []
        in_flight = tuple(self._in_flight)
        may_be_late = True
        for answer, num_acknowledged in zip(
            in_flight, self.table.num_acknowledged([answer.column for answer in in_flight]), strict=True
        ):
            assert answer.flow is not None
            is_new = num_acknowledged != answer.flow.num_acknowledged
            if is_new or may_be_late:
                answer.flow.acknowledged(num_acknowledged)
                state = answer.flow.state(now)
                if self._heed(answer, state):
                    news.append(answer)
                # What follows a chunk that is not late yet was sent later.
                may_be_late = may_be_late and (is_new or state is not FlowState.FLOWING)
        return news

    def _heed(self, answer: Answer, state: FlowState) -> bool:
        """Act on what is known of an answer's reader; return whether the answer can go on, or has failed."""
        assert answer.flow is not None
        if state is FlowState.GONE:
            if answer.has_ended:
                answer.error = answer.error or CancelledError("this stream is no longer read")
                return True
            if not answer.aborted:
                self.abort(answer)
            return False
        if (state is FlowState.STALLED) != answer.paused:
            answer.paused = not answer.paused
            for stream in answer.streams:
                stream.hurry()
                self._tell(Command.PAUSE if answer.paused else Command.RESUME, stream.sequence)
        if not answer.flow.may_send:
            return False
        del self._in_flight[answer]
        self._held.discard(answer)
        return True
