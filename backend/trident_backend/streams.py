"""The thread that answers: turns token events into responses, stream by stream.

Owns every open stream: what has been sent, what waits, whether its reader still reads. Tokens that wait for one stream
leave as one chunk. Every stream gets exactly one final response, whatever happens to it. Never schedules: it only tells
the engine loop that a sequence should pause, go on or end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trident_backend.flow import FlowControl, FlowState
from trident_backend.loop import Command, TokenEvent
from trident_backend.sequence import FinishReason, Sequence
from trident_ensemble.acknowledgements import AcknowledgementTable, encode
from trident_ensemble.anchors import context_start
from trident_ensemble.chunk_header import ChunkHeader, Part
from trident_ensemble.errors import CancelledError, DrainingError, EngineError, TridentError
from trident_ensemble.settings import CoreSettings

_POLL_HELD_S = 0.002
_POLL_UNACKNOWLEDGED_S = 0.02
_POLL_CANCELLED_S = 0.1


@dataclass(frozen=True)
class Chunk:
    """One response: see the tensors of the same names."""

    output_ids: list[int]
    context_ids: list[int]
    header: ChunkHeader
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int

    @property
    def is_last(self) -> bool:
        """Whether this is the final response of its request."""
        return bool(self.finish_reason)


class Responder(Protocol):
    """The way back to one client."""

    def send(self, chunk: Chunk) -> None:
        """Send a response; the final one if it is the last chunk."""
        ...

    def fail(self, error: TridentError) -> None:
        """Send an error as the final response."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client is known to be gone; never asked after the final response."""
        ...


@dataclass
class _Stream:
    sequence: Sequence
    responder: Responder
    streaming: bool
    flow: FlowControl | None
    slot: int = 0
    generation: int = 0
    output_ids: list[int] = field(default_factory=list)
    num_sent: int = 0
    paused: bool = False
    aborted: bool = False
    finish_reason: FinishReason | None = None
    error: TridentError | None = None

    @property
    def is_held(self) -> bool:
        """Whether something waits to be sent."""
        return self.finish_reason is not None or (self.streaming and self.num_sent < len(self.output_ids))


class Streams:
    """All open streams of a core.

    Args:
        settings: flow control's bounds.
        max_num_streams: streams open at a time, at most.
        anchors: uint8 `[vocab_size]`, see `trident_ensemble.anchors`.
        tell: the engine loop's inbox.
        on_closed: called once for each stream after its final response.
        on_fatal: called on this thread when it cannot go on; every open stream has been answered by then.
    """

    def __init__(
        self,
        settings: CoreSettings,
        max_num_streams: int,
        anchors: npt.NDArray[np.uint8],
        tell: Callable[[Command, Sequence], None],
        *,
        on_closed: Callable[[Sequence], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._anchors = anchors.tobytes()
        self._tell = tell
        self._on_closed = on_closed
        self._on_fatal = on_fatal
        self._table = AcknowledgementTable(max_num_streams)
        self._streams: dict[int, _Stream] = {}
        self._inbox: queue.SimpleQueue[list[TokenEvent] | _Stream | None] = queue.SimpleQueue()
        self._next_cancel_poll = 0.0
        self._thread = threading.Thread(target=self._run, name="trident-streams", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def open(self, sequence: Sequence, responder: Responder, *, streaming: bool, flow_control: bool) -> None:
        """Answer for a sequence from now on; to be called before the engine loop hears of it."""
        flow = FlowControl(self._settings) if streaming and flow_control else None
        stream = _Stream(sequence, responder, streaming, flow)
        self._inbox.put(stream)

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
        controlled = [stream for stream in self._streams.values() if stream.flow is not None]
        counts = self._table.num_acknowledged([stream.slot for stream in controlled])
        for stream, num_acknowledged in zip(controlled, counts, strict=True):
            self._heed(stream, num_acknowledged, now)
        for stream in list(self._streams.values()):
            self._pump(stream, now)

    def _finish_all(self, error: TridentError) -> None:
        for stream in list(self._streams.values()):
            self._finish(stream, stream.error or error)

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
        streams = self._streams.values()
        if not streams:
            return None
        if any(stream.is_held for stream in streams):
            return _POLL_HELD_S
        waits = any(stream.flow is not None and not stream.flow.may_send for stream in streams)
        return _POLL_UNACKNOWLEDGED_S if waits else _POLL_CANCELLED_S

    def _take(self, message: list[TokenEvent] | _Stream) -> None:
        if isinstance(message, _Stream):
            if message.flow is not None:
                message.slot, message.generation = self._table.open()
            self._streams[message.sequence.sequence_id] = message
            return
        for event in message:
            stream = self._streams.get(event.sequence_id)
            if stream is None:
                continue
            stream.output_ids.extend(event.token_ids)
            stream.finish_reason = event.finish_reason
            stream.error = event.error

    def _poll_cancelled(self, now: float) -> None:
        if now < self._next_cancel_poll:
            return
        self._next_cancel_poll = now + _POLL_CANCELLED_S
        for stream in self._streams.values():
            if not stream.aborted and stream.responder.is_cancelled():
                self._abort(stream)

    def _heed(self, stream: _Stream, num_acknowledged: int, now: float) -> None:
        """Act on what a stream's acknowledgements say."""
        assert stream.flow is not None
        stream.flow.acknowledged(num_acknowledged)
        state = stream.flow.state(now)
        if state is FlowState.GONE:
            if stream.finish_reason is not None:
                stream.error = stream.error or CancelledError("nobody reads this stream any more")
            elif not stream.aborted:
                self._abort(stream)
        elif (state is FlowState.STALLED) != stream.paused:
            stream.paused = not stream.paused
            self._tell(Command.PAUSE if stream.paused else Command.RESUME, stream.sequence)

    def _pump(self, stream: _Stream, now: float) -> None:
        """Send what may be sent."""
        if stream.error is not None:
            self._finish(stream, stream.error)
        elif stream.is_held and (stream.flow is None or stream.flow.may_send):
            self._send(stream, now)

    def _abort(self, stream: _Stream) -> None:
        stream.aborted = True
        self._tell(Command.ABORT, stream.sequence)

    def _send(self, stream: _Stream, now: float) -> None:
        start, end = stream.num_sent, len(stream.output_ids)
        last = stream.finish_reason is not None
        table_id, acknowledgement = 0, 0
        if stream.flow is not None:
            stream.flow.sent(now)
            table_id, acknowledgement = self._table.table_id, encode(stream.generation, stream.flow.num_sent)
        chunk = Chunk(
            output_ids=stream.output_ids[start:end],
            context_ids=stream.output_ids[context_start(self._anchors, stream.output_ids, start) : start],
            header=ChunkHeader(table_id, stream.slot, acknowledgement, last, True, (Part(end - start),)),
            finish_reason=stream.finish_reason.value if stream.finish_reason is not None else "",
            num_input_tokens=stream.sequence.num_prompt_tokens,
            num_output_tokens=end,
        )
        stream.num_sent = end
        if last:
            self._close(stream)
        stream.responder.send(chunk)

    def _finish(self, stream: _Stream, error: TridentError) -> None:
        self._close(stream)
        stream.responder.fail(error)

    def _close(self, stream: _Stream) -> None:
        del self._streams[stream.sequence.sequence_id]
        if stream.flow is not None:
            self._table.release(stream.slot)
        self._on_closed(stream.sequence)
