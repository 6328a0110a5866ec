"""Reads the events of sequences, and sends responses to clients when they are due.

Owns the open streams, which of them may have something to send, and the timers of those that have to wait until their
interval is over. Never starts a thread, waits or reads a clock: the answering thread makes and sends every response
here, and passes times in.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from trident_backend.serving.answers import Answer, SequenceStream
from trident_backend.serving.client_watch import ClientWatch
from trident_backend.serving.events import TokenEvent
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.responses import Response, padded
from trident_ensemble.contract.chunk_header import ChunkHeader
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.failures import internal_error, log_failure


class _Timer(NamedTuple):
    due_at: float
    sequence_id: int
    stream: SequenceStream


class ResponsePump:
    """Sends what is due.

    A wake-up looks at those answers alone that have news: tokens, an acknowledgement, or a timer that has run out.

    Args:
        anchors: of `trident_ensemble.text.anchors`, one byte a token id.
        builder: makes the output tensors beside the tokens.
        watch: knows what clients have read.
        on_closed: called once for each answer, before its final response.
    """

    def __init__(
        self, anchors: bytes, builder: OutputTensorBuilder, watch: ClientWatch, on_closed: Callable[[Answer], None]
    ) -> None:
        self._anchors = anchors
        self._builder = builder
        self._watch = watch
        self._on_closed = on_closed
        self._streams: dict[int, SequenceStream] = {}
        # An ordered set.
        self._ready: dict[Answer, None] = {}
        self._timers: list[_Timer] = []

    @property
    def num_streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def enter(self, answer: Answer) -> None:
        """Send this answer's responses from now on."""
        for stream in answer.streams:
            self._streams[stream.sequence.sequence_id] = stream

    def take(self, events: Iterable[TokenEvent]) -> None:
        """Take a step's events; what they allow to send leaves with the next `flush`."""
        for event in events:
            stream = self._streams.get(event.sequence_id)
            if stream is None:
                continue
            stream.take(event)
            answer = stream.answer
            if stream.ended or answer.request.output.streaming or answer.error is not None:
                self._ready[answer] = None

    def wait_s(self, now: float) -> float:
        """Return seconds until the next timer runs out."""
        return max(0.0, self._timers[0].due_at - now) if self._timers else math.inf

    def flush(self, news: Iterable[Answer], now: float) -> None:
        """Send all that is due.

        Args:
            news: answers whose clients have read on, or have failed.
            now: in seconds.
        """
        ready, self._ready = self._ready, {}
        ready.update(dict.fromkeys(news))
        while self._timers and self._timers[0].due_at <= now:
            stream = heapq.heappop(self._timers).stream
            stream.has_timer = False
            ready[stream.answer] = None
        for answer in ready:
            self._flush(answer, now)

    def fail(self, answer: Answer, error: TridentError) -> None:
        """End an answer with an error. Never raises: the client gets its final response, whatever fails beside it."""
        if not answer.aborted:
            attempt("a request's sequences could not be ended", lambda: self._watch.abort(answer))
        attempt("a request could not be closed", lambda: self._close(answer))
        attempt("a client could not be told of its request's end", lambda: answer.responder.fail(error))

    def _flush(self, answer: Answer, now: float) -> None:
        """Send what is due of one answer; a failure on the way ends this answer, and no other."""
        if answer.is_closed:
            return
        if answer.error is not None:
            self.fail(answer, answer.error)
            return
        try:
            if answer.request.output.streaming:
                self._flush_streams(answer, now)
            elif answer.has_ended:
                self._send(answer, list(answer.streams), now)
        except BaseException as cause:
            self.fail(answer, internal_error("the answer could not be sent", cause))

    def _flush_streams(self, answer: Answer, now: float) -> None:
        while (stream := answer.next(now)) is not None:
            if not answer.may_send:
                self._watch.hold(answer)
                break
            answer.had_its_turn(stream)
            self._send(answer, [stream], now)
        for stream in answer.streams:
            if stream.is_held and not stream.has_timer and not stream.is_due(now):
                stream.has_timer = True
                heapq.heappush(self._timers, _Timer(stream.due_at, stream.sequence.sequence_id, stream))

    def _send(self, answer: Answer, streams: list[SequenceStream], now: float) -> None:
        """Send one response: all of an answer, or what there is of one of its streams."""
        first, is_last = streams[0], streams[0].ended
        table_id, number = 0, 0
        if answer.flow is not None:
            self._watch.sent(answer, now)
            table_id, number = self._watch.table.table_id, answer.flow.num_sent
        context_ids = first.context_ids(self._anchors)
        sent = [stream.send(now) for stream in streams]
        output = answer.request.output
        is_first, answer.has_begun = not answer.has_begun, True
        header = ChunkHeader(
            table_id,
            answer.column,
            answer.secret,
            number,
            is_last,
            output.skip_special_tokens,
            tuple([chunk.part for chunk in sent]),
            context_ids,
            output.marker_ids,
        )
        response = Response(
            padded([chunk.ids for chunk in sent], output.pad_id),
            header,
            self._builder.outputs(answer.request, [chunk.slice for chunk in sent], is_first=is_first, is_last=is_last),
            is_last and len(streams) == len(answer.streams),
        )
        if is_last:
            for stream in streams:
                self._close_stream(stream)
        if response.is_final:
            self._close(answer)
        answer.responder.send(response)

    def _close_stream(self, stream: SequenceStream) -> None:
        stream.answer.streams.remove(stream)
        self._streams.pop(stream.sequence.sequence_id, None)

    def _close(self, answer: Answer) -> None:
        """Forget an answer whose final response is next."""
        if answer.is_closed:
            return
        answer.is_closed = True
        for stream in tuple(answer.streams):
            self._close_stream(stream)
        try:
            self._watch.leave(answer)
        finally:
            self._on_closed(answer)


def attempt(what: str, step: Callable[[], None]) -> None:
    """Take a step, and log its failure as this sentence."""
    try:
        step()
    except BaseException as cause:
        log_failure(what, cause)
