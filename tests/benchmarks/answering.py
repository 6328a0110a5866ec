"""`make bench BENCH=answering`: what the thread that answers costs, by how many requests are open.

Drives `AnsweringThread` alone, through what the engine loop and clients see of it: no engine, no Triton. Only what the
thread itself uses of the processor is counted, so a busy machine changes little. Every figure is a median over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.fakes.core import SPEC
from tests.fakes.serving import Speller, context
from trident_backend.requests.request import Request, parse_request
from trident_backend.serving.answering import AnsweringThread
from trident_backend.serving.events import TokenEvent
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.responses import Response
from trident_ensemble.acknowledgements import Acknowledger
from trident_ensemble.contract.errors import DrainingError, TridentError
from trident_ensemble.contract.settings import CoreSettings
from trident_tools.load.option_values import whole_number

_NUM_RUNNING = 100
_SECONDS = 1.0
_NUM_STEPS = 100
#: Long enough for nothing to be abandoned while it is measured.
_SETTINGS = CoreSettings(pause_after_ms=600_000, abandon_after_ms=600_000, stream_interval_ms=0)


class Counters:
    """What all clients together have seen."""

    def __init__(self) -> None:
        self.num_chunks = 0
        self.num_questions = 0
        self.num_wanted = 0
        self.arrived = threading.Event()

    def expect(self, num_chunks: int) -> None:
        self.arrived.clear()
        self.num_wanted = self.num_chunks + num_chunks

    def wait(self) -> None:
        if not self.arrived.wait(30):
            raise TimeoutError("chunks did not leave within 30 s")


class Reader:
    """A client; it acknowledges at once, or never."""

    def __init__(self, counters: Counters, acknowledger: Acknowledger | None) -> None:
        self._counters = counters
        self._acknowledger = acknowledger

    def send(self, response: Response) -> None:
        header = response.header
        if self._acknowledger is not None and header.table_id:
            self._acknowledger.acknowledge(header.table_id, header.column, header.secret, header.number)
        self._counters.num_chunks += 1
        if self._counters.num_chunks == self._counters.num_wanted:
            self._counters.arrived.set()

    def fail(self, error: TridentError) -> None:
        """Everybody's end, when the round is over."""

    def is_cancelled(self) -> bool:
        self._counters.num_questions += 1
        return False


@contextmanager
def _opened(
    num_open: int, counters: Counters, acknowledger: Acknowledger | None, **fields: Any
) -> Iterator[tuple[AnsweringThread, list[Request]]]:
    """So many open requests, and the thread that answers them."""
    streams = AnsweringThread(
        _SETTINGS,
        num_open,
        bytes([1]) * SPEC.vocab_size,
        OutputTensorBuilder(SPEC.block_size, 0, Speller()),
        clock=time.monotonic,
        tell=lambda _command, _sequence: None,
        on_closed=lambda _request: None,
        on_fatal=lambda error: print(f"the answering thread died: {error!r}"),
    )
    ids = itertools.count(1)
    asked = {"input_ids": [1, 2, 3], "max_tokens": 40, "stream": True, **fields}
    requests = [parse_request(ids, asked, context(), 0.0) for _ in range(num_open)]
    streams.start()
    for request in requests:
        streams.open(request, Reader(counters, acknowledger))
    try:
        yield streams, requests
    finally:
        streams.stop(DrainingError("the round is over"))


def _step(streams: AnsweringThread, running: list[Request]) -> None:
    for request in running:
        request.first.token_ids.append(7)
    streams.emit([TokenEvent(request.first.sequence_id, 1, None) for request in running])


def _cpu_seconds() -> float:
    """The processor time that the thread which answers has used."""
    (thread,) = (one for one in threading.enumerate() if one.name == "trident-answers")
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def waiting(num_open: int) -> float:
    """Processor time per second, in ms, while running streams hold tokens back for want of acknowledgements."""
    counters = Counters()
    with _opened(num_open, counters, None, flow_control=True) as (streams, requests):
        running = requests[:_NUM_RUNNING]
        counters.expect(len(running))
        _step(streams, running)
        counters.wait()
        _step(streams, running)
        time.sleep(0.1)
        began, cpu = time.monotonic(), _cpu_seconds()
        time.sleep(_SECONDS)
        return (_cpu_seconds() - cpu) / (time.monotonic() - began) * 1000


def stepping(num_open: int) -> float:
    """Processor time per step, in ms, in which each running stream gets a token that leaves at once."""
    counters = Counters()
    with _opened(num_open, counters, Acknowledger(0), flow_control=True) as (streams, requests):
        running = requests[:_NUM_RUNNING]
        for number in range(_NUM_STEPS + 10):
            if number == 10:
                cpu = _cpu_seconds()
            counters.expect(len(running))
            _step(streams, running)
            counters.wait()
        return (_cpu_seconds() - cpu) / _NUM_STEPS * 1000


def asking(num_open: int, *, flow_control: bool) -> float:
    """Questions per second whether a client is gone; each is a message to tritonserver and back."""
    counters = Counters()
    with _opened(num_open, counters, None, flow_control=flow_control):
        time.sleep(0.1)
        began, before = time.monotonic(), counters.num_questions
        time.sleep(_SECONDS)
        return (counters.num_questions - before) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=3)
    parser.add_argument("--open", type=whole_number(1), nargs="+", default=[100, 1280], help="open requests")
    args = parser.parse_args()
    table = Table("open requests", "waiting, ms of CPU a second", "stepping, ms of CPU a step", "asking, a second")
    for num_open in args.open:
        waits, steps = ([figure(num_open) for _ in range(args.rounds)] for figure in (waiting, stepping))
        through, direct = (asking(num_open, flow_control=flow_control) for flow_control in (True, False))
        table.add_row(
            str(num_open),
            f"{median(waits):.1f}",
            f"{median(steps):.3f}",
            f"{through:.0f} through the ensemble, {direct:.0f} of the core itself",
        )
    Console(width=140).print(f"{_NUM_RUNNING} streams run, all others wait; medians of {args.rounds} rounds")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
