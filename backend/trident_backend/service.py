"""The core as a whole: admission, engine loop and streams, put together.

Owns the order of starting and stopping, and what was measured until somebody takes it. Knows no Triton: requests come
as plain fields, answers go to a `Responder`. Usable from any thread.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_backend.admission import Admission
from trident_backend.core import EngineCore
from trident_backend.engine.artifact import Generation
from trident_backend.engine.protocol import Engine
from trident_backend.loop import Command, EngineLoop, LoopStats
from trident_backend.records import RequestRecord, StepRecord, request_record
from trident_backend.requests import parse_request
from trident_backend.sequence import FinishReason, Sequence
from trident_backend.streams import Responder, Streams
from trident_ensemble import tensors
from trident_ensemble.draining import DrainNotice
from trident_ensemble.errors import DrainingError, QueueFullError
from trident_ensemble.settings import CoreSettings


class CoreService:
    """Serves requests on one engine.

    Args:
        engine: the service owns it from now on.
        defaults: the checkpoint's generation settings.
        anchors: uint8 `[vocab_size]`, see `trident_ensemble.anchors`.
        settings: serving parameters.
        notice: once given, new requests are refused and those in the core finish.
        on_fatal: called after every request has been answered, when the engine cannot go on.
    """

    def __init__(
        self,
        engine: Engine,
        defaults: Generation,
        anchors: npt.NDArray[np.uint8],
        settings: CoreSettings,
        *,
        notice: DrainNotice,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._defaults = defaults
        self._notice = notice
        self._on_fatal = on_fatal
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._admission = Admission(self.spec, settings)
        self._stopping = False
        self._records: deque[StepRecord | RequestRecord] = deque(maxlen=_MAX_RECORDS)
        core = EngineCore(engine, settings, time.monotonic)
        self._streams = Streams(
            settings,
            self._admission.capacity,
            anchors,
            self._tell,
            on_closed=self._closed,
            on_fatal=self._streams_died,
        )
        self._loop = EngineLoop(core, self._streams.emit, self._records.append, self._loop_died)
        self._streams.start()
        self._loop.start()

    @property
    def stats(self) -> LoopStats:
        """The core between its last two steps."""
        return replace(self._loop.stats, num_open=self._admission.num_requests)

    def take_records(self) -> list[StepRecord | RequestRecord]:
        """What was measured since this was last asked."""
        return [self._records.popleft() for _ in range(len(self._records))]

    def submit(self, fields: Mapping[str, Any], responder: Responder) -> None:
        """Take a request; from here on the responder gets exactly one final response.

        Raises:
            RequestError: the request cannot be served as it is.
            QueueFullError: as many requests or tokens are in the core as may be.
            DrainingError: the core is being stopped.
        """
        sequence = parse_request(next(self._ids), fields, self.spec, self._defaults, time.monotonic())
        with self._lock:
            if self._stopping or self._notice.given():
                raise DrainingError("the server is shutting down")
            self._enter(sequence)
            self._streams.open(
                sequence,
                responder,
                streaming=bool(fields.get(tensors.STREAM.name, False)),
                flow_control=bool(fields.get(tensors.FLOW_CONTROL.name, False)),
            )
            self._loop.tell(Command.ADD, sequence)

    def stop(self) -> None:
        """Cancel what is left, answer it, and free the engine."""
        with self._lock:
            self._stopping = True
        self._loop.stop()
        self._streams.stop()
        self._engine.close()

    def _enter(self, sequence: Sequence) -> None:
        try:
            self._admission.enter(sequence.num_prompt_tokens, sequence.tenant)
        except QueueFullError:
            sequence.finish_reason = FinishReason.REFUSED
            self._records.append(request_record(sequence, sequence.arrived_at))
            raise

    def _tell(self, command: Command, sequence: Any) -> None:
        self._loop.tell(command, sequence)

    def _closed(self, sequence: Sequence) -> None:
        self._admission.leave(sequence.num_prompt_tokens, sequence.tenant)

    def _loop_died(self, error: BaseException) -> None:
        with self._lock:
            self._stopping = True
        self._streams.stop()
        self._on_fatal(error)

    def _streams_died(self, error: BaseException) -> None:
        with self._lock:
            self._stopping = True
        self._on_fatal(error)


#: Records that nobody has taken yet; the oldest are forgotten first.
_MAX_RECORDS = 65536
