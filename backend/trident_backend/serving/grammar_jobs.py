"""Requests whose grammar is being compiled.

Owns the threads that compile, and these requests: the caller that takes one out must answer it. Never answers one
itself. All methods but `close` are called under one lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Timer
from typing import Protocol

from trident_backend.requests.request import Request
from trident_backend.scheduling import deadlines
from trident_backend.sequences.guide import Guide
from trident_backend.serving.responses import Responder
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import InvalidGuideError, RequestError, TridentError
from trident_ensemble.contract.failures import internal_error


class Grammar(Protocol):
    """A compiled grammar of `trident_backend.guided`."""

    def start(self, end_ids: frozenset[int], *, begins_text: bool) -> Guide:
        """Return the guide of a new sequence."""
        ...


class GuideCompiler(Protocol):
    """The compiler of `trident_backend.guided`."""

    def compile(self, guide_type: str, guide: str) -> Grammar:
        """Compile a grammar. Called on any thread; may take seconds.

        Raises:
            RequestError: it is not a grammar.
        """
        ...


class GrammarJobs:
    """Requests that wait for their grammar.

    Args:
        compiler: used by several threads.
        on_done: called for each request on one of the threads here, with the failure if there was one; the request is
            still here, unless it has been taken.
    """

    def __init__(self, compiler: GuideCompiler, on_done: Callable[[Request, TridentError | None], None]) -> None:
        self._compiler = compiler
        self._on_done = on_done
        self._responders: dict[Request, Responder] = {}
        self._jobs: dict[Request, Future[None]] = {}
        self._timers: dict[Request, Timer] = {}
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "trident-guide-compiler")

    def add(self, request: Request, responder: Responder) -> None:
        """Begin to compile the guide of a request; when that is done, its sequences have their guides.

        The request fails if its deadline passes before. If this raises, the request is not here.
        """
        self._responders[request] = responder
        first = request.first
        try:
            if first.deadline < math.inf:
                seconds = max(0.0, first.deadline - time.monotonic())
                self._timers[request] = Timer(seconds, self._on_done, (request, deadlines.missed(first)))
                self._timers[request].daemon = True
                self._timers[request].start()
            self._jobs[request] = self._threads.submit(self._compile, request)
        except BaseException:
            self.take(request)
            raise

    def take(self, request: Request) -> Responder | None:
        """Take a request out; return its responder, or None if it is not here. A job that has not begun never does."""
        if (job := self._jobs.pop(request, None)) is not None:
            job.cancel()
        if (timer := self._timers.pop(request, None)) is not None:
            timer.cancel()
        return self._responders.pop(request, None)

    def take_all(self) -> list[tuple[Request, Responder]]:
        """Take all requests out. What has begun for them ends with `close`."""
        taken, self._responders = self._responders, {}
        return list(taken.items())

    def close(self) -> None:
        """Begin no further grammar, and cancel the deadlines. Does not wait for grammars that are being compiled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for timer in tuple(self._timers.values()):
            timer.cancel()

    def _compile(self, request: Request) -> None:
        assert request.guide is not None
        try:
            grammar = self._grammar(*request.guide)
            for sequence in request.sequences:
                end_ids = sequence.end_ids | sequence.stop_ids
                sequence.guide = grammar.start(end_ids, begins_text=not request.output.echo)
        except TridentError as error:
            self._on_done(request, error)
        except BaseException as error:  # whatever it is, a client waits for an answer
            self._on_done(request, internal_error("the guide could not be compiled", error))
        else:
            self._on_done(request, None)

    def _grammar(self, guide_type: str, guide: str) -> Grammar:
        try:
            return self._compiler.compile(guide_type, guide)
        except RequestError as error:
            if error.field != tensors.GUIDE.name:
                raise
            raise InvalidGuideError(error.field, error.problem) from error


_NUM_THREADS = 2
