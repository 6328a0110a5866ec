"""A whole core on a mock engine, for tests that ask it things."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from tests.backend.doubles import SPEC
from trident_backend.engine.artifact import Generation
from trident_backend.engine.mock import MockEngine
from trident_backend.service import CoreService
from trident_ensemble.draining import DrainNotice
from trident_ensemble.settings import CoreSettings

NO_DEFAULTS = Generation(end_ids=(), temperature=0.0, top_k=0, top_p=1.0)
ANCHORS = np.ones(SPEC.vocab_size, np.uint8)


@contextmanager
def serving(
    engine: MockEngine, settings: CoreSettings | None = None, notice: DrainNotice | None = None
) -> Iterator[CoreService]:
    died: list[BaseException] = []
    service = CoreService(
        engine,
        NO_DEFAULTS,
        ANCHORS,
        settings or CoreSettings(),
        notice=notice or DrainNotice(None),
        on_fatal=died.append,
    )
    try:
        yield service
    finally:
        if not died:
            service.stop()


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)
