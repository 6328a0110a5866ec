"""What may be in the core at a time, also when everybody comes at once."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from tests.fakes.core import SPEC, Client
from tests.fakes.serving import serving
from trident_backend.engine.mock import MockEngine
from trident_backend.requests.request import Request, parse_request
from trident_backend.serving import service as service_module
from trident_backend.serving.admission import Admission
from trident_ensemble.contract.errors import QueueFullError, triton_code
from trident_ensemble.contract.settings import CoreSettings

#: 24 blocks of 4 tokens, and so many that wait.
MAX_TOKENS = 96 + 50


def test_admission_as_many_requests_as_run_and_wait() -> None:
    admission = Admission(SPEC, CoreSettings(max_queue_size=3))
    for _ in range(4 + 3):
        admission.enter(1)
    with pytest.raises(QueueFullError, match=r"4 requests run and max_queue_size 3 wait; try again later") as caught:
        admission.enter(1)
    assert triton_code(caught.value) == "UNAVAILABLE"
    assert (admission.num_requests, admission.num_tokens) == (7, 7)
    admission.leave(1)
    admission.enter(1)


def test_admission_as_many_tokens_as_the_cache_holds_and_may_wait() -> None:
    admission = Admission(SPEC, CoreSettings(max_queue_tokens=50))
    admission.enter(60)
    admission.enter(60)
    with pytest.raises(QueueFullError, match=r"27 tokens beside 120 .* max_queue_tokens 50 .*try again later"):
        admission.enter(27)
    assert (admission.num_requests, admission.num_tokens) == (2, 120), "a refusal leaves no trace"
    admission.enter(26)
    with pytest.raises(QueueFullError):
        admission.enter(1)
    admission.leave(60)
    admission.enter(60)


def test_admission_a_request_for_several_answers_counts_as_so_many_with_one_prompt() -> None:
    admission = Admission(SPEC, CoreSettings(max_queue_size=3))
    admission.enter(10, "", 4)
    admission.enter(10, "", 2)
    assert (admission.num_requests, admission.num_tokens) == (6, 20)
    with pytest.raises(QueueFullError, match="max_queue_size 3"):
        admission.enter(10, "", 2)
    admission.leave(10, "", 4)
    assert (admission.num_requests, admission.num_tokens) == (2, 10)
    admission.leave(10, "", 2)
    assert (admission.num_requests, admission.num_tokens) == (0, 0)


def test_admission_as_many_answers_as_can_run_are_always_taken_by_an_idle_core() -> None:
    Admission(SPEC, CoreSettings(max_queue_size=0)).enter(1, "", SPEC.max_num_seqs)


def test_admission_the_longest_prompt_fits_when_nothing_else_is_there() -> None:
    admission = Admission(SPEC, CoreSettings(max_queue_tokens=1))
    admission.enter(SPEC.max_seq_len - 1)


class Slow(int):
    """A number of tokens that takes its time to be added, so that whoever does not wait for its turn is seen."""

    def __radd__(self, other: int) -> int:
        time.sleep(1e-4)
        return int(other) + int(self)

    def __rsub__(self, other: int) -> int:
        time.sleep(1e-4)
        return int(other) - int(self)


def test_admission_threads_together_never_exceed_the_bounds() -> None:
    admission = Admission(SPEC, CoreSettings(max_queue_size=2, max_queue_tokens=50))
    exceeded: list[tuple[int, int]] = []
    held: list[Slow] = []
    refused = [0] * 8
    start = threading.Barrier(8)

    def client(number: int) -> None:
        rng = random.Random(number)  # noqa: S311 (a test's choice)
        start.wait()
        for _ in range(60):
            num_tokens = Slow(rng.randint(1, 60))
            try:
                admission.enter(num_tokens)
            except QueueFullError:
                refused[number] += 1
                with suppress(IndexError):
                    admission.leave(held.pop())
                continue
            if admission.num_requests > 6 or admission.num_tokens > MAX_TOKENS:
                exceeded.append((admission.num_requests, admission.num_tokens))
            held.append(num_tokens)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not exceeded
    assert 0 < sum(refused) < 8 * 60
    assert (admission.num_requests, admission.num_tokens) == (len(held), sum(int(number) for number in held))


def test_admission_a_flood_does_not_shut_other_tenants_out() -> None:
    admission = Admission(SPEC, CoreSettings(max_queue_size=36, max_queue_tokens=704))
    for _ in range(40):
        admission.enter(20, "flood")
    with pytest.raises(QueueFullError):
        admission.enter(1, "flood")
    for _ in range(5):
        admission.enter(20, "other")
    with pytest.raises(QueueFullError):
        admission.enter(1, "other")
    assert admission.num_requests == admission.capacity == 45
    with pytest.raises(QueueFullError):
        admission.enter(1, "third")
    admission.leave(20, "flood")
    admission.enter(1, "third")


def test_admission_a_request_that_cannot_enter_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read it may take a copy of its prompt for each of its answers."""
    engine = MockEngine(SPEC)
    with serving(engine, CoreSettings(max_queue_size=1)) as service:
        num_read = 0

        def counted(*args: Any, **options: Any) -> Request:
            nonlocal num_read
            num_read += 1
            return parse_request(*args, **options)

        monkeypatch.setattr(service_module, "parse_request", counted)
        for _ in range(SPEC.max_num_seqs + 1):
            service._admission.enter(1, "greedy")
        with pytest.raises(QueueFullError):
            service.submit({"input_ids": [1], "max_tokens": 4, "tenant": b"greedy"}, Client())
        assert num_read == 0
        client = Client()
        for _ in range(SPEC.max_num_seqs + 1):
            service._admission.leave(1, "greedy")
        service.submit({"input_ids": [1], "max_tokens": 4, "tenant": b"greedy"}, client)
        assert num_read == 1
        assert client.done.wait(60)
