"""The thread that answers: turns token events into responses, stream by stream.

Owns every open answer: what has been sent, what waits, whether its reader still reads. Tokens that wait for one stream
leave as one chunk. Every request gets exactly one final response, whatever happens to its sequences, to this thread or
to the engine loop: whoever cannot be served ends with an error of its own. Never schedules: it only tells the engine
loop that a sequence should pause, go on or end.

A wake-up looks at those answers alone that can have news: the ones whose sequences were heard of, the ones with a chunk
on its way, and, ten times a second, the ones whose clients Triton must be asked after.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from trident_backend.requests.request import Request
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.answers import Answer, Stream
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.flow_control import FlowState
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.responses import Responder, Response, padded
from trident_ensemble.acknowledgements import AcknowledgementTable
from trident_ensemble.contract.chunk_header import ChunkHeader
from trident_ensemble.contract.errors import CancelledError, TridentError
from trident_ensemble.contract.failures import internal_error, log_failure
from trident_ensemble.contract.settings import CoreSettings

_POLL_HELD_S = 0.002
_POLL_UNACKNOWLEDGED_S = 0.02
_POLL_CANCELLED_S = 0.1


class AnsweringThread:
    """All open answers of a core.

    Args:
        settings: flow control's bounds.
        max_num_streams: sequences that are answered at a time, at most.
        anchors: of `trident_ensemble.text.anchors`, one byte a token id.
        reporter: fills responses.
        tell: the engine loop's inbox.
        on_closed: called on this thread once for each request, before its final response.
        on_fatal: called on this thread when it cannot go on; every open request has been answered by then.
    """

    def __init__(
        self,
        settings: CoreSettings,
        max_num_streams: int,
        anchors: bytes,
        reporter: OutputTensorBuilder,
        tell: Callable[[Command, Sequence], None],
        *,
        on_closed: Callable[[Request], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._anchors = anchors
        self._reporter = reporter
        self._emit_step = tell
        self._on_closed = on_closed
        self._on_fatal = on_fatal
        self._table = AcknowledgementTable(max_num_streams)
        self._inbox: queue.SimpleQueue[list[TokenEvent] | Answer | TridentError] = queue.SimpleQueue()
        # Guards all open answers, and the end, from which on there are no new ones.
        self._lock = threading.Lock()
        self._answers: dict[int, Answer] = {}
        self._end: TridentError | None = None
        self._streams: dict[int, Stream] = {}
        # Ordered sets. Those that may have something to send now.
        self._ready: dict[Answer, None] = {}
        # Those with a chunk on its way, which was sent the longest ago first; and those of them that hold more back.
        self._in_flight: dict[Answer, None] = {}
        self._held: set[Answer] = set()
        # Those whose clients nobody but Triton knows of.
        self._asked: dict[Answer, None] = {}
        self._next_cancel_poll = 0.0
        self._thread = threading.Thread(target=self._run, name="trident-streams", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def open(self, request: Request, responder: Responder) -> None:
        """Answer a request from now on; to be called, from any thread, before the engine loop hears of its sequences.

        Raises:
            TridentError: nothing is answered any more; the request is still the caller's to answer.
        """
        answer = Answer(request, responder, self._settings)
        with self._lock:
            if self._end is not None:
                raise self._end
            self._answers[request.first.sequence_id] = answer
            self._inbox.put(answer)

    def emit(self, events: list[TokenEvent]) -> None:
        """Take a step's events."""
        self._inbox.put(events)

    def stop(self, error: TridentError, timeout_s: float | None = None) -> None:
        """Answer everything that was emitted, end what is then left with an error, and end the thread.

        Args:
            error: what those are told that are not finished.
            timeout_s: seconds to wait for it; None for no limit.
        """
        self._inbox.put(error)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            error = None
            while error is None:
                error = self._take_inbox()
                self._flush_all()
            self._end_all(error)
        except BaseException as cause:  # the last line of defence: nobody may wait for ever
            try:
                self._end_all(internal_error("the server can send no more answers, and ends", cause))
            finally:
                self._on_fatal(cause)

    def _end_all(self, error: TridentError) -> None:
        """Take no further answer, and fail all there are, of which some may still lie in the inbox."""
        with self._lock:
            self._end = error
            left = tuple(self._answers.values())
        for answer in left:
            self._fail(answer, answer.error or error)
        _attempt("the acknowledgement table could not be removed", self._table.close)

    def _take_inbox(self) -> TridentError | None:
        """Wait for news, and take all there is; return what is left to be told when it is the end."""
        try:
            message = self._inbox.get(timeout=self._wait_timeout())
            while not isinstance(message, TridentError):
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return None
        return message

    def _wait_timeout(self) -> float | None:
        """Return how long to wait for news: acknowledgements and cancellations make no sound."""
        if self._held:
            return _POLL_HELD_S
        waits = _POLL_UNACKNOWLEDGED_S if self._in_flight else None
        if not self._asked:
            return waits
        until_poll = max(0.0, self._next_cancel_poll - time.monotonic())
        return until_poll if waits is None else min(waits, until_poll)

    def _take(self, message: list[TokenEvent] | Answer) -> None:
        if isinstance(message, Answer):
            self._enter(message)
            return
        for event in message:
            stream = self._streams.get(event.sequence_id)
            if stream is None:
                continue
            stream.take(event)
            answer = stream.answer
            if answer.error is None and answer in self._in_flight:
                if stream.is_held:
                    self._held.add(answer)
            elif answer.error is not None or stream.ended or answer.request.output.streaming:
                self._ready[answer] = None

    def _enter(self, answer: Answer) -> None:
        for stream in answer.streams:
            self._streams[stream.sequence.sequence_id] = stream
        if not answer.request.output.flow_control:
            self._asked[answer] = None
        if answer.flow is not None:
            try:
                answer.slot, answer.secret = self._table.open()
            except BaseException as cause:
                self._fail(answer, internal_error("the request could not be answered", cause))

    def _flush_all(self) -> None:
        now = time.monotonic()
        self._poll_cancelled(now)
        self._read_acknowledgements(now)
        ready, self._ready = self._ready, {}
        for answer in ready:
            self._flush(answer, now)

    def _poll_cancelled(self, now: float) -> None:
        if now < self._next_cancel_poll:
            return
        self._next_cancel_poll = now + _POLL_CANCELLED_S
        for answer in tuple(self._asked):
            if answer.aborted:
                continue
            try:
                is_cancelled = answer.responder.is_cancelled()
            except BaseException as cause:
                self._fail(answer, internal_error("the request's client could not be asked after", cause))
                continue
            if is_cancelled:
                self._abort(answer)

    def _read_acknowledgements(self, now: float) -> None:
        """Act on what the acknowledgements say of every chunk that is on its way."""
        in_flight = tuple(self._in_flight)
        if not in_flight:
            return
        may_be_late = True
        for answer, num_acknowledged in zip(
            in_flight, self._table.num_acknowledged([answer.slot for answer in in_flight]), strict=True
        ):
            assert answer.flow is not None
            is_new = num_acknowledged != answer.flow.num_acknowledged
            if is_new or may_be_late:
                answer.flow.acknowledged(num_acknowledged)
                # Whoever comes behind one that is not late yet was sent later.
                is_late = self._apply_acks(answer, answer.flow.state(now))
                may_be_late = may_be_late and (is_new or is_late)

    def _apply_acks(self, answer: Answer, state: FlowState) -> bool:
        """Act on what is known of an answer's reader; return whether its chunk has been on its way for long."""
        assert answer.flow is not None
        if state is FlowState.GONE:
            if answer.has_ended:
                answer.error = answer.error or CancelledError("nobody reads this stream any more")
                self._ready[answer] = None
            elif not answer.aborted:
                self._abort(answer)
            return True
        if (state is FlowState.STALLED) != answer.paused:
            answer.paused = not answer.paused
            for stream in answer.streams:
                self._emit_step(Command.PAUSE if answer.paused else Command.RESUME, stream.sequence)
        if answer.flow.may_send:
            del self._in_flight[answer]
            self._held.discard(answer)
            self._ready[answer] = None
        return state is FlowState.STALLED

    def _flush(self, answer: Answer, now: float) -> None:
        """Send what may be sent; what fails on the way ends this request, and no other."""
        if answer.is_closed:
            return
        if answer.error is not None:
            self._fail(answer, answer.error)
            return
        try:
            if answer.request.output.streaming:
                while (answer.flow is None or answer.flow.may_send) and (stream := answer.next) is not None:
                    answer.had_its_turn(stream)
                    self._send(answer, [stream], now)
            elif answer.has_ended:
                self._send(answer, list(answer.streams), now)
        except BaseException as cause:
            self._fail(answer, internal_error("the answer could not be sent", cause))
            return
        if answer in self._in_flight and answer.next is not None:
            self._held.add(answer)

    def _abort(self, answer: Answer) -> None:
        """End what has not ended; the answer is then an error, because the loop says so."""
        answer.aborted = True
        for stream in answer.streams:
            if not stream.ended:
                self._emit_step(Command.ABORT, stream.sequence)

    def _send(self, answer: Answer, streams: list[Stream], now: float) -> None:
        """One response: all of an answer, or what there is of one of its streams."""
        first, is_last = streams[0], streams[0].ended
        table_id, secret, number = 0, 0, 0
        if answer.flow is not None:
            answer.flow.sent(now)
            self._in_flight[answer] = None
            table_id, secret, number = self._table.table_id, answer.secret, answer.flow.num_sent
        context_ids = first.context_ids(self._anchors)
        ids, parts, spans = zip(*(stream.send() for stream in streams), strict=True)
        wanted = answer.request.output
        response = Response(
            output_ids=padded(ids, wanted.pad_id),
            context_ids=context_ids,
            header=ChunkHeader(table_id, answer.slot, secret, number, is_last, wanted.skip_special_tokens, parts),
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
        """End an answer with an error. Never raises: the client gets its final response, whatever fails beside it."""
        if not answer.aborted:
            _attempt("a request's sequences could not be ended", lambda: self._abort(answer))
        _attempt("a request could not be closed", lambda: self._close(answer))
        _attempt("a client could not be told of its request's end", lambda: answer.responder.fail(error))

    def _close_stream(self, stream: Stream) -> None:
        stream.answer.streams.remove(stream)
        self._streams.pop(stream.sequence.sequence_id, None)

    def _close(self, answer: Answer) -> None:
        """Forget an answer whose final response is next."""
        if answer.is_closed:
            return
        answer.is_closed = True
        for stream in tuple(answer.streams):
            self._close_stream(stream)
        with self._lock:
            self._answers.pop(answer.request.first.sequence_id, None)
        self._in_flight.pop(answer, None)
        self._held.discard(answer)
        self._asked.pop(answer, None)
        try:
            if answer.secret:
                self._table.release(answer.slot)
        finally:
            self._on_closed(answer.request)


def _attempt(what: str, step: Callable[[], None]) -> None:
    """Take a step, and log it if it fails."""
    try:
        step()
    except BaseException as cause:
        log_failure(what, cause)
