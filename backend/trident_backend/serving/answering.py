"""The thread that answers: turns token events into responses.

Owns every open answer from `open` to its final response, and the thread's own end. Every request gets exactly one final
response, whatever happens to its sequences, to this thread or to the engine loop: what cannot be served ends with an
error of its own. Never schedules: the engine loop is only told that a sequence should pause, resume or end.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable

from trident_backend.requests.request import Request
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.answers import Answer
from trident_backend.serving.client_watch import ClientWatch
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.response_pump import ResponsePump, attempt
from trident_backend.serving.responses import Responder
from trident_ensemble.acknowledgements import AcknowledgementTable
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.failures import internal_error
from trident_ensemble.contract.settings import CoreSettings


class AnsweringThread:
    """All open answers of a core.

    Args:
        settings: the bounds of flow control, and the interval between a stream's chunks.
        max_num_answers: answers that are open at a time, at most.
        anchors: of `trident_ensemble.text.anchors`, one byte a token id.
        builder: makes the output tensors beside the tokens.
        clock: seconds; never falls.
        tell: the engine loop's inbox.
        on_closed: called on this thread once for each request, before its final response.
        on_fatal: called on this thread when it cannot go on; every open request has been answered by then.
    """

    def __init__(
        self,
        settings: CoreSettings,
        max_num_answers: int,
        anchors: bytes,
        builder: OutputTensorBuilder,
        *,
        clock: Callable[[], float],
        tell: Callable[[Command, Sequence], None],
        on_closed: Callable[[Request], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_closed = on_closed
        self._on_fatal = on_fatal
        self._watch = ClientWatch(AcknowledgementTable(max_num_answers), tell)
        self._pump = ResponsePump(anchors, builder, self._watch, self._closed)
        self._inbox: queue.SimpleQueue[list[TokenEvent] | Answer | TridentError] = queue.SimpleQueue()
        # Guards the open answers, and the end, after which no answer is opened.
        self._lock = threading.Lock()
        self._answers: dict[int, Answer] = {}
        self._end: TridentError | None = None
        self._thread = threading.Thread(target=self._run, name="trident-answers", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def open(self, request: Request, responder: Responder) -> None:
        """Answer a request from now on. Call it, from any thread, before the engine loop is told of its sequences.

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
        """Take a step's events; from the engine loop's thread."""
        self._inbox.put(events)

    def stop(self, error: TridentError, timeout_s: float | None = None) -> None:
        """Answer everything that was emitted, end what is then left with an error, and end the thread.

        Args:
            error: what clients of unfinished requests are told.
            timeout_s: seconds to wait for the thread's end; None for no limit.
        """
        self._inbox.put(error)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            error = None
            while error is None:
                error = self._take_inbox()
                now = self._clock()
                self._pump.flush(self._watch.look(now), now)
            self._end_all(error)
        except BaseException as cause:  # the last line of defence: no client may wait for ever
            try:
                self._end_all(internal_error("the server can send no more answers, and ends", cause))
            finally:
                self._on_fatal(cause)

    def _end_all(self, error: TridentError) -> None:
        """Open no further answer, and fail all that are left, of which some may still lie in the inbox."""
        with self._lock:
            self._end = error
            left = tuple(self._answers.values())
        for answer in left:
            self._pump.fail(answer, answer.error or error)
        attempt("the acknowledgement table could not be removed", self._watch.table.close)

    def _take_inbox(self) -> TridentError | None:
        """Wait for messages, and take all there are; return the error to end with when asked to stop."""
        try:
            message = self._inbox.get(timeout=self._wait_timeout())
            while not isinstance(message, TridentError):
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return None
        return message

    def _wait_timeout(self) -> float | None:
        now = self._clock()
        wait_s = min(self._watch.wait_s(now), self._pump.wait_s(now))
        return None if wait_s == math.inf else wait_s

    def _take(self, message: list[TokenEvent] | Answer) -> None:
        if not isinstance(message, Answer):
            self._pump.take(message)
            return
        self._pump.enter(message)
        try:
            self._watch.enter(message)
        except BaseException as cause:
            self._pump.fail(message, internal_error("the request could not be answered", cause))

    def _closed(self, answer: Answer) -> None:
        with self._lock:
            self._answers.pop(answer.request.first.sequence_id, None)
        self._on_closed(answer.request)
