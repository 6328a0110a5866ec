"""The thread that answers: turns token events into responses, stream by stream.

Owns every open answer: what has been sent, what waits, whether its reader still reads. Tokens that wait for one stream
leave as one chunk. Every request gets exactly one final response, whatever happens to its sequences. Never schedules:
it only tells the engine loop that a sequence should pause, go on or end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from trident_backend.flow import FlowState
from trident_backend.loop import Command, TokenEvent
from trident_backend.reports import Reporter
from trident_backend.requests import Request
from trident_backend.responses import Responder, Response, padded
from trident_backend.sequence import Sequence
from trident_backend.stream import Answer, Stream
from trident_ensemble.acknowledgements import AcknowledgementTable, encode
from trident_ensemble.chunk_header import ChunkHeader
from trident_ensemble.errors import CancelledError, DrainingError, EngineError, TridentError
from trident_ensemble.settings import CoreSettings

_POLL_HELD_S = 0.002
_POLL_UNACKNOWLEDGED_S = 0.02
_POLL_CANCELLED_S = 0.1


class Streams:
    """All open answers of a core.

    Args:
        settings: flow control's bounds.
        max_num_streams: sequences that are answered at a time, at most.
        anchors: of `trident_ensemble.anchors`, one byte a token id.
        reporter: fills responses.
        tell: the engine loop's inbox.
        on_closed: called once for each request, before its final response.
        on_fatal: called on this thread when it cannot go on; every open request has been answered by then.
    """

    def __init__(
        self,
        settings: CoreSettings,
        max_num_streams: int,
        anchors: bytes,
        reporter: Reporter,
        tell: Callable[[Command, Sequence], None],
        *,
        on_closed: Callable[[Request], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._anchors = anchors
        self._reporter = reporter
        self._tell = tell
        self._on_closed = on_closed
        self._on_fatal = on_fatal
        self._table = AcknowledgementTable(max_num_streams)
        self._answers: dict[int, Answer] = {}
        self._streams: dict[int, Stream] = {}
        self._inbox: queue.SimpleQueue[list[TokenEvent] | Answer | None] = queue.SimpleQueue()
        self._next_cancel_poll = 0.0
        self._thread = threading.Thread(target=self._run, name="trident-streams", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def open(self, request: Request, responder: Responder) -> None:
        """Answer a request from now on; to be called before the engine loop hears of its sequences."""
        self._inbox.put(Answer(request, responder, self._settings))

    def emit(self, events: list[TokenEvent]) -> None:
        """Take a step's events."""
        self._inbox.put(events)

    def stop(self) -> None:
        """End after everything that was emitted has been answered."""
        self._inbox.put(None)
        self._thread.join()
        self._table.close()

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self._pump_all()
            self._pump_all()
            self._finish_all(DrainingError("the server is shutting down"))
        except BaseException as error:  # the last line of defence: nobody may wait for ever
            self._finish_all(EngineError(f"the thread that answers died: {error!r}"))
            self._on_fatal(error)

    def _pump_all(self) -> None:
        now = time.monotonic()
        self._poll_cancelled(now)
        controlled = [answer for answer in self._answers.values() if answer.flow is not None]
        counts = self._table.num_acknowledged([answer.slot for answer in controlled])
        for answer, num_acknowledged in zip(controlled, counts, strict=True):
            self._heed(answer, num_acknowledged, now)
        for answer in list(self._answers.values()):
            self._pump(answer, now)

    def _finish_all(self, error: TridentError) -> None:
        for answer in list(self._answers.values()):
            self._fail(answer, answer.error or error)

    def _take_inbox(self) -> bool:
        try:
            message = self._inbox.get(timeout=self._patience())
            while True:
                if message is None:
                    return False
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _patience(self) -> float | None:
        """How long to wait for news: acknowledgements and cancellations make no sound."""
        answers = self._answers.values()
        if not answers:
            return None
        if any(answer.flow is not None and answer.next is not None for answer in answers):
            return _POLL_HELD_S
        waits = any(answer.flow is not None and not answer.flow.may_send for answer in answers)
        return _POLL_UNACKNOWLEDGED_S if waits else _POLL_CANCELLED_S

    def _take(self, message: list[TokenEvent] | Answer) -> None:
        if isinstance(message, Answer):
            self._answers[message.request.first.sequence_id] = message
            if message.flow is not None:
                message.slot, message.generation = self._table.open()
            for stream in message.streams:
                self._streams[stream.sequence.sequence_id] = stream
            return
        for event in message:
            if (taken := self._streams.get(event.sequence_id)) is not None:
                taken.take(event)

    def _poll_cancelled(self, now: float) -> None:
        if now < self._next_cancel_poll:
            return
        self._next_cancel_poll = now + _POLL_CANCELLED_S
        for answer in self._answers.values():
            if not answer.aborted and answer.responder.is_cancelled():
                self._abort(answer)

    def _heed(self, answer: Answer, num_acknowledged: int, now: float) -> None:
        """Act on what an answer's acknowledgements say."""
        assert answer.flow is not None
        answer.flow.acknowledged(num_acknowledged)
        state = answer.flow.state(now)
        if state is FlowState.GONE:
            if answer.has_ended:
                answer.error = answer.error or CancelledError("nobody reads this stream any more")
            elif not answer.aborted:
                self._abort(answer)
        elif (state is FlowState.STALLED) != answer.paused:
            answer.paused = not answer.paused
            for stream in answer.streams:
                self._tell(Command.PAUSE if answer.paused else Command.RESUME, stream.sequence)

    def _pump(self, answer: Answer, now: float) -> None:
        """Send what may be sent."""
        if answer.error is not None:
            self._fail(answer, answer.error)
        elif answer.request.output.streaming:
            while (answer.flow is None or answer.flow.may_send) and (stream := answer.next) is not None:
                answer.had_its_turn(stream)
                self._send(answer, [stream], now)
        elif answer.has_ended:
            self._send(answer, list(answer.streams), now)

    def _abort(self, answer: Answer) -> None:
        """End what has not ended; the answer is then an error, because the loop says so."""
        answer.aborted = True
        for stream in answer.streams:
            if not stream.ended:
                self._tell(Command.ABORT, stream.sequence)

    def _send(self, answer: Answer, streams: list[Stream], now: float) -> None:
        """One response: all of an answer, or what there is of one of its streams."""
        first, is_last = streams[0], streams[0].ended
        table_id, acknowledgement = 0, 0
        if answer.flow is not None:
            answer.flow.sent(now)
            table_id, acknowledgement = self._table.table_id, encode(answer.generation, answer.flow.num_sent)
        context_ids = first.context_ids(self._anchors)
        ids, parts, spans = zip(*(stream.send() for stream in streams), strict=True)
        wanted = answer.request.output
        response = Response(
            output_ids=padded(ids, wanted.pad_id),
            context_ids=context_ids,
            header=ChunkHeader(table_id, answer.slot, acknowledgement, is_last, wanted.skip_special_tokens, parts),
            outputs=self._reporter.outputs(answer.request, spans, is_last=is_last),
            is_final=is_last and len(streams) == len(answer.streams),
        )
        if is_last:
            for stream in streams:
                self._close_stream(stream)
        if response.is_final:
            self._close(answer)
        answer.responder.send(response)

    def _fail(self, answer: Answer, error: TridentError) -> None:
        if not answer.aborted:
            self._abort(answer)
        for stream in tuple(answer.streams):
            self._close_stream(stream)
        self._close(answer)
        answer.responder.fail(error)

    def _close_stream(self, stream: Stream) -> None:
        stream.answer.streams.remove(stream)
        del self._streams[stream.sequence.sequence_id]

    def _close(self, answer: Answer) -> None:
        del self._answers[answer.request.first.sequence_id]
        if answer.flow is not None:
            self._table.release(answer.slot)
        self._on_closed(answer.request)
