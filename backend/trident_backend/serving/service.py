"""The core as a whole: admission, grammar jobs, engine loop and answering thread, put together.

Owns the order of starting and stopping, which requests have which of their clients' ids, and the records that have not
been taken yet. Never touches Triton: requests come as plain fields, answers go to a `Responder`. Any thread may use it.

An accepted request is at every moment held by one of two, which answers it: `GrammarJobs` while its grammar is
compiled, `AnsweringThread` from then on. Whichever thread fails, these two are told to answer all they hold and to
accept no more, and then the process is told to end.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from trident_backend.core import EngineCore
from trident_backend.engine.protocol import Engine
from trident_backend.metrics.loop_stats import LoopStats
from trident_backend.metrics.records import RequestRecord, StepRecord, refusal
from trident_backend.requests.request import Request, RequestContext, parse_request, parse_size, parse_stop
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.admission import Admission
from trident_backend.serving.answering import AnsweringThread
from trident_backend.serving.events import Command
from trident_backend.serving.grammar_jobs import GrammarJobs, GuideCompiler
from trident_backend.serving.loop import EngineLoop
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.responses import Responder, nothing_generated
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import DrainingError, TridentError
from trident_ensemble.contract.failures import internal_error, log_failure
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.draining import DrainNotice


class CoreService:
    """Serves requests on one engine.

    Args:
        engine: owned by the service from now on.
        context: what requests are read against; its limits are the engine's.
        anchors: of `trident_ensemble.text.anchors`, one byte a token id.
        settings: the serving parameters.
        guides: compiles the grammars of guided outputs.
        notice: once given, new requests are refused, and those in the core finish.
        on_fatal: called after every request has been answered, when the engine cannot go on.
    """

    def __init__(
        self,
        engine: Engine,
        context: RequestContext,
        anchors: bytes,
        settings: CoreSettings,
        *,
        guides: GuideCompiler,
        notice: DrainNotice,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.spec = engine.spec
        self._context = context
        self._notice = notice
        self._on_fatal = on_fatal
        self._ids = itertools.count(1)
        self._lock = threading.Condition()
        # Requests that never began and whose clients are being told.
        self._in_hand: set[Request] = set()
        self._admission = Admission(self.spec, settings)
        self._named: defaultdict[tuple[str, str], list[Request]] = defaultdict(list)
        self._guided = GrammarJobs(guides, self._compiled)
        self._stopping = False
        self._records: deque[StepRecord | RequestRecord] = deque(maxlen=_MAX_RECORDS)
        self._core = EngineCore(engine, settings, time.monotonic)
        self._answering = AnsweringThread(
            settings,
            self._admission.capacity,
            anchors,
            OutputTensorBuilder(self.spec.block_size, time.time_ns() - time.monotonic_ns(), context.token_bytes),
            clock=time.monotonic,
            tell=self._tell,
            on_closed=self._closed,
            on_fatal=self._answering_died,
        )
        self._loop = EngineLoop(self._core, self._answering.emit, self._records.append, self._die)
        self._answering.start()
        self._loop.start()

    @property
    def stats(self) -> LoopStats:
        """How the core stands between two steps; waits for the loop to count, within a step."""
        return replace(self._loop.stats(), num_open=self.num_open)

    @property
    def num_open(self) -> int:
        """How many requests have no final answer yet; waits for nothing."""
        return self._admission.num_requests

    def take_records(self) -> list[StepRecord | RequestRecord]:
        """Return what was measured since the last call."""
        return [self._records.popleft() for _ in range(len(self._records))]

    def submit(self, fields: Mapping[str, Any], responder: Responder, request_id: str = "") -> None:
        """Take a request; from then on the responder gets exactly one final response.

        Args:
            fields: the inputs, as `RequestFields` takes them.
            responder: the way back to the client.
            request_id: the client's own name for it. A request with `stop` ends those of this name and its tenant.

        Raises:
            RequestError: the request cannot be served as it is.
            QueueFullError: the core holds as many requests or tokens as it may.
            DrainingError: the core is being stopped.
            Exception: the request could not be taken for an unforeseen reason. Whatever is raised, the request is the
                caller's to answer.
        """
        if fields.get(tensors.STOP.name, False):
            self._stop_named(parse_stop(fields, request_id))
            responder.send(nothing_generated())
            return
        try:
            self._admission.check(*parse_size(fields, self.spec))
            request = parse_request(self._ids, fields, self._context, time.monotonic(), request_id)
            self._take(request, responder)
        except BaseException:
            self.refused()
            raise

    def refused(self) -> None:
        """Count a request that was refused."""
        self._records.append(refusal())

    def stop(self) -> None:
        """Cancel what is left, answer it, and free the engine."""
        _each(
            lambda: self._close_doors(_draining()),
            self._loop.stop,
            lambda: self._answering.stop(_draining(), _ANSWER_S),
            self._core.close,
        )

    def _take(self, request: Request, responder: Responder) -> None:
        first = request.first
        with self._lock:
            if self._stopping or self._notice.given():
                raise _draining()
            self._admission.enter(first.num_prompt_tokens, first.tenant, len(request.sequences))
            if request.request_id:
                self._named[first.tenant, request.request_id].append(request)
            try:
                if request.guide is None:
                    self._begin(request, responder)
                else:
                    self._guided.add(request, responder)
            except BaseException:
                self._closed(request)
                raise

    def _begin(self, request: Request, responder: Responder) -> None:
        self._answering.open(request, responder)
        for sequence in request.sequences:
            self._loop.tell(Command.ADD, sequence)

    def _compiled(self, request: Request, error: TridentError | None) -> None:
        try:
            self._go_on(request, error)
        except BaseException as cause:  # the pool would swallow it
            self._die(cause)

    def _go_on(self, request: Request, error: TridentError | None) -> None:
        """Begin a request whose guide is there, or refuse it, unless it has been answered meanwhile."""
        with self._lock:
            responder = self._guided.take(request)
            if responder is not None and error is None:
                error = _failure(partial(self._begin, request, responder))
            if responder is None or error is None:
                return
            self._in_hand.add(request)
        self._refuse_in_hand(request, responder, error)

    def _refuse_in_hand(self, request: Request, responder: Responder, error: TridentError) -> None:
        try:
            self._refuse(request, responder, error)
        finally:
            with self._lock:
                self._in_hand.discard(request)
                self._lock.notify_all()

    def _stop_named(self, name: tuple[str, str]) -> None:
        with self._lock:
            for request in tuple(self._named.get(name, ())):
                responder = self._guided.take(request)
                if responder is not None:
                    error = _failure(partial(self._answering.open, request, responder))
                    if error is not None:
                        self._refuse(request, responder, error)
                for sequence in request.sequences:
                    self._loop.tell(Command.STOP, sequence)

    def _refuse(self, request: Request, responder: Responder, error: TridentError) -> None:
        """Answer a request that was accepted and never began."""
        _each(lambda: self._closed(request), self.refused, lambda: responder.fail(error))

    def _close_doors(self, error: TridentError) -> None:
        """Accept no further request, and refuse those whose guide is being compiled.

        Waits for other threads that are refusing requests, because the process may end next.
        """
        with self._lock:
            self._stopping = True
            left = self._guided.take_all()
            self._in_hand.update(request for request, _ in left)
        refusals = (partial(self._refuse_in_hand, request, responder, error) for request, responder in left)
        _each(self._guided.close, *refusals)
        with self._lock:
            self._lock.wait_for(lambda: not self._in_hand, _ANSWER_S)

    def _tell(self, command: Command, sequence: Sequence) -> None:
        self._loop.tell(command, sequence)

    def _closed(self, request: Request) -> None:
        first = request.first
        self._admission.leave(first.num_prompt_tokens, first.tenant, len(request.sequences))
        if request.request_id:
            with self._lock:
                named = self._named[first.tenant, request.request_id]
                named.remove(request)
                if not named:
                    del self._named[first.tenant, request.request_id]

    def _die(self, error: BaseException) -> None:
        """Answer all requests, then have the process ended. Called by any thread but the answering one."""
        failure = internal_error("the core cannot go on, and the server ends", error)
        _each(
            lambda: self._close_doors(failure),
            lambda: self._answering.stop(failure, _ANSWER_S),
            lambda: self._on_fatal(error),
        )

    def _answering_died(self, error: BaseException) -> None:
        _each(lambda: self._close_doors(_draining()), lambda: self._on_fatal(error))


def _failure(step: Callable[[], None]) -> TridentError | None:
    """Take the step with which an accepted request begins; return what its client is told if it fails."""
    try:
        step()
    except TridentError as error:
        return error
    except BaseException as cause:
        return internal_error("the request could not begin", cause)
    return None


def _draining() -> DrainingError:
    return DrainingError("the server is shutting down")


def _each(*steps: Callable[[], object]) -> None:
    """Take every step; log what one raises, and go on with the next."""
    for step in steps:
        try:
            step()
        except BaseException as cause:
            log_failure("the core could not be brought to its end in order", cause)


#: Seconds that the answering thread has for all open answers once the core ends.
_ANSWER_S = 10.0
#: Records that have not been taken yet; the oldest are dropped first.
_MAX_RECORDS = 65536
