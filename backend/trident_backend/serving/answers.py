"""The answer to one request on its way to its client: a stream for each of its sequences, and their flow control.

Owns how far each sequence has come, what of it may leave and when, what has left, and what the acknowledgements say of
the reader. Never sends or stops anything, and never reads a clock: times are passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from trident_backend.requests.request import Request
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.events import TokenEvent
from trident_backend.serving.responses import Responder, ResponseSlice
from trident_ensemble.acknowledgements import GONE
from trident_ensemble.contract.chunk_header import ALL, Part
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.text import anchors as text_anchors
from trident_ensemble.text.markers import HidingTable


class FlowState(Enum):
    """The states of an answer's reader, as its acknowledgements tell."""

    FLOWING = auto()
    STALLED = auto()
    GONE = auto()


@dataclass
class FlowControl:
    """The acknowledgements of one answer: one chunk is on its way at a time, so that none can overtake another.

    Args:
        settings: how long a chunk may stay unacknowledged.
        num_sent: chunks that have left.
        num_acknowledged: chunks that have been delivered, or GONE.
        sent_at: when the last chunk left, in seconds.
    """

    settings: CoreSettings
    num_sent: int = 0
    num_acknowledged: int = 0
    sent_at: float = 0.0

    @property
    def may_send(self) -> bool:
        """Whether no chunk is on its way."""
        return self.num_acknowledged == self.num_sent

    def sent(self, now: float) -> None:
        """Count one more chunk that has left."""
        assert self.may_send
        self.num_sent += 1
        self.sent_at = now

    def acknowledged(self, num_chunks: int) -> None:
        """Note that the reader has had this many chunks in all, or is GONE. Ignore more than have been sent."""
        if num_chunks <= self.num_sent or num_chunks == GONE:
            self.num_acknowledged = max(self.num_acknowledged, num_chunks)

    def state(self, now: float) -> FlowState:
        """Return what is known of the reader, from acknowledgements and from how long one has been missing."""
        if self.num_acknowledged == GONE:
            return FlowState.GONE
        waited_ms = 0 if self.may_send else (now - self.sent_at) * 1000
        if waited_ms >= self.settings.abandon_after_ms:
            return FlowState.GONE
        return FlowState.STALLED if waited_ms >= self.settings.pause_after_ms else FlowState.FLOWING


class StreamChunk(NamedTuple):
    """The part of one stream that a response carries: ids, and what header and output tensors say of them."""

    ids: list[int]
    part: Part
    slice: ResponseSlice


class SequenceStream:
    """The output of one sequence, the echoed prompt before it, as it leaves.

    Reads `sequence.token_ids`, to which the engine loop's thread appends: only as far as events have said, and what has
    been appended never changes.

    Args:
        sequence: generates the tokens.
        answer: the answer that this stream is a part of.
        interval_s: after its first chunk, the least time between two chunks in seconds.

    Attributes:
        num_sent: tokens that have left.
        ended: no further token comes.
        due_at: when the next chunk may leave, in seconds.
        has_timer: a timer for `due_at` is running.
    """

    __slots__ = (
        "_is_urgent", "_num_echoed", "_num_safe", "_num_tokens", "_start", "answer", "due_at", "ended", "has_timer",
        "interval_s", "num_sent", "sequence",
    )  # fmt: skip

    def __init__(self, sequence: Sequence, answer: Answer, interval_s: float) -> None:
        echoes = answer.request.output.echo
        self.sequence = sequence
        self.answer = answer
        self.interval_s = interval_s
        self._num_echoed = sequence.num_prompt_tokens if echoes else 0
        self._start = sequence.num_prompt_tokens - self._num_echoed
        self._num_tokens = self._num_echoed
        self._num_safe = 0
        self._is_urgent = False
        self.num_sent = 0
        self.ended = False
        self.due_at = -math.inf
        self.has_timer = False

    def take(self, event: TokenEvent) -> None:
        """Take new tokens, or the end.

        What a stop string had held back leaves without delay once it is decided.
        """
        num_undecided = self._num_tokens if self._num_safe < self._num_tokens else math.inf
        self._num_tokens += event.num_tokens
        self.ended = event.finish_reason is not None
        self.answer.error = self.answer.error or event.error
        if self.ended or event.num_safe_tokens is None:
            self._num_safe = self._num_tokens
        else:
            self._num_safe = event.num_safe_tokens
            self._is_urgent = self._is_urgent or self._num_safe >= num_undecided

    @property
    def is_held(self) -> bool:
        """Whether there is something to send."""
        return self.ended or self.num_sent < self._num_safe

    def is_due(self, now: float) -> bool:
        """Return whether what there is to send may leave now."""
        return self.ended or self._is_urgent or now >= self.due_at

    def hurry(self) -> None:
        """Let the next chunk leave without delay."""
        self._is_urgent = True

    def context_ids(self, anchors: bytes) -> list[int]:
        """Return the ids before those that are sent next that decoding needs.

        Args:
            anchors: of `trident_ensemble.text.anchors`, one byte a token id.
        """
        output = self.answer.request.output
        skip, start, end = output.skip_special_tokens, self._start, self._start + self.num_sent
        table = HidingTable(anchors, frozenset(output.marker_ids)) if output.marker_ids else anchors
        return text_anchors.context_ids(table, self.sequence.token_ids, end, skip_special_tokens=skip, begin=start)

    def send(self, now: float) -> StreamChunk:
        """Return all that may leave, and count it as sent."""
        start, end = self.num_sent, self._num_safe
        self.num_sent = end
        self.due_at = now + self.interval_s
        self._is_urgent = False
        span = ResponseSlice(
            self.sequence, end - start, max(0, start - self._num_echoed), max(0, end - self._num_echoed)
        )
        ids = self.sequence.token_ids[self._start + start : self._start + end]
        return StreamChunk(ids, self._part(start, end), span)

    def _part(self, start: int, end: int) -> Part:
        if not self.ended:
            return Part(end - start)
        stop_strings, num_hidden, num_characters = self.sequence.stop_strings, self.sequence.num_hidden_tail_tokens, ALL
        if stop_strings is not None and stop_strings.num_characters != ALL:
            num_hidden = max(num_hidden, stop_strings.num_hidden_tail_tokens)
            num_characters = stop_strings.num_characters - stop_strings.text_end(start)
        return Part(end - start, num_hidden, num_characters)


class Answer:
    """The answer to one request, from its first chunk to its final response.

    Args:
        request: the request.
        responder: the way to its client.
        settings: the bounds of flow control, and the server's interval between chunks.

    Attributes:
        flow: of its chunks, whichever sequence they are of: tritonserver mixes up outputs of an ensemble's responses
            that are on their way together. None if chunks are not acknowledged.
        column: its column in the acknowledgement table.
        secret: proves that an acknowledgement is for this answer.
        has_begun: a response has been sent, or is being sent.
        paused: its reader is behind, and the loop has been told so.
        aborted: the loop has been told to end its sequences.
        is_closed: its final response has been sent, or is being sent.
        streams: the sequences whose last chunk has not left, in the order of their turns.
    """

    def __init__(self, request: Request, responder: Responder, settings: CoreSettings) -> None:
        output = request.output
        interval_ms = settings.stream_interval_ms if output.stream_interval_ms is None else output.stream_interval_ms
        self.request = request
        self.responder = responder
        self.aborted = False
        self.error: TridentError | None = None
        self.flow = FlowControl(settings) if output.streaming and output.flow_control else None
        self.column, self.secret = 0, 0
        self.has_begun = False
        self.paused = False
        self.is_closed = False
        self.streams = [SequenceStream(sequence, self, interval_ms / 1000) for sequence in request.sequences]

    @property
    def may_send(self) -> bool:
        """Whether flow control lets a chunk leave."""
        return self.flow is None or self.flow.may_send

    def next(self, now: float) -> SequenceStream | None:
        """Return the stream whose turn it is to send, of those that may send something now."""
        for stream in self.streams:
            if stream.is_held and stream.is_due(now):
                return stream
        return None

    def had_its_turn(self, stream: SequenceStream) -> None:
        """Move a stream to the back of the round-robin order."""
        self.streams.remove(stream)
        self.streams.append(stream)

    @property
    def has_ended(self) -> bool:
        """Whether all its sequences have ended."""
        return all(stream.ended for stream in self.streams)
