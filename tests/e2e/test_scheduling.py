"""What a request may ask of the scheduler survives the ensemble: priority, tenant, timeout, the prefix cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import ask_grpc, grpc_stream, make_inputs
from tests.e2e.server import Server, post, serve, until

NUM_PLACES = 2
NUM_WAITING = 16
LONG: dict[str, Any] = {"text_input": "one of many", "max_tokens": 600, "stream": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def narrow(narrow_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two places, a short queue, and a prompt budget that a long prompt exceeds; all of it said at serve time."""
    log = tmp_path_factory.mktemp("narrow") / "log"
    options = ("--max-queue-size", "64", "--max-queue-tokens", "6000", "--token-budget", "128")
    with serve(narrow_repository, log, *options) as server:
        yield server


def _first_token_times(server: Server, late: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """When a crowd's requests got their first tokens, and when those did that came after the crowd."""

    def first_token(fields: dict[str, Any]) -> float:
        with grpc_stream(server.grpc, make_inputs(grpcclient, fields)) as results:
            next(results)
            at = time.monotonic()
            for _ in results:
                pass
        return at

    crowd = [{**LONG, "tenant": "crowd", "priority": 5} for _ in range(NUM_PLACES + NUM_WAITING)]
    with ThreadPoolExecutor(len(crowd) + len(late)) as pool:
        began = [pool.submit(first_token, fields) for fields in crowd]
        until(lambda: _num_waiting(server) >= NUM_WAITING - 1, 60, "the crowd to wait")
        followed = [pool.submit(first_token, fields) for fields in late]
        return sorted(one.result() for one in began), [one.result() for one in followed]


def _num_waiting(server: Server) -> float:
    return server.metric("nv_trt_llm_request_metrics", request_type="waiting")


def test_scheduling_priority_and_tenant_go_before_a_crowd_that_came_earlier(narrow: Server) -> None:
    crowd, (plain, urgent, other) = _first_token_times(
        narrow,
        [
            {**LONG, "tenant": "crowd", "priority": 5},
            {**LONG, "tenant": "crowd", "priority": -20},
            {**LONG, "tenant": "other", "priority": 5},
        ],
    )
    overtaken = [sum(at > late for at in crowd) for late in (plain, urgent, other)]
    assert overtaken[0] <= 1
    assert overtaken[1] >= NUM_WAITING // 2
    assert overtaken[2] >= NUM_WAITING // 2


@pytest.mark.parametrize("stream", [True, False])
def test_scheduling_a_timeout_ends_the_request_and_frees_its_room(narrow: Server, stream: bool) -> None:
    began = time.monotonic()
    with pytest.raises(InferenceServerException, match=r"\[UNAVAILABLE\] timeout: timeout_ms: 300 ms have passed"):
        ask_grpc(narrow.grpc, text_input="on and on", max_tokens=3000, ignore_eos=True, stream=stream, timeout_ms=300)
    assert time.monotonic() - began > 0.25
    until(lambda: narrow.num_used_blocks == 0, 60, "its blocks to be free")


def test_scheduling_a_timeout_over_http_is_unavailable(narrow: Server) -> None:
    fields = {"text_input": "on and on", "max_tokens": 3000, "ignore_eos": True, "timeout_ms": 200}
    status, body = post(narrow, "/v2/models/ensemble/generate", fields)
    assert (status, "timeout_ms: 200 ms have passed" in body) == (400, True)
    with httpclient.InferenceServerClient(narrow.http) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("ensemble_unary", make_inputs(httpclient, fields))
    assert caught.value.status() == "503"


def test_scheduling_a_deadline_that_cannot_be_met_is_refused_at_once(narrow: Server) -> None:
    busy = make_inputs(grpcclient, {**LONG, "text_input": "warm up " * 60, "max_tokens": 2500})
    with grpc_stream(narrow.grpc, busy) as results:
        for _ in range(20):
            next(results)
        with pytest.raises(InferenceServerException, match="timeout_ms: 1 ms cannot be met"):
            ask_grpc(narrow.grpc, text_input="much too long " * 250, max_tokens=4, timeout_ms=1)


def test_scheduling_a_queue_full_of_tokens_refuses_at_once_and_says_why(narrow: Server) -> None:
    held = threading.Event()
    prompt = "word after word " * 180

    def hold() -> str:
        try:
            ask_grpc(narrow.grpc, text_input=prompt, max_tokens=20, ignore_eos=True, reuse_cache=False)
        except InferenceServerException as error:
            held.set()
            return str(error)
        return ""

    with ThreadPoolExecutor(24) as pool:
        outcomes = list(pool.map(lambda _: hold(), range(24)))
    refused = [outcome for outcome in outcomes if outcome]
    assert 0 < len(refused) < 24
    assert all("[UNAVAILABLE]" in outcome and "max_queue_tokens 6000" in outcome for outcome in refused)
    assert ask_grpc(narrow.grpc, text_input="again", max_tokens=2).num_finals == 1


def test_scheduling_the_prefix_cache_heeds_salt_and_opting_out(narrow: Server) -> None:
    prompt = "a beginning that all of these have in common " * 20

    def reused(**fields: Any) -> tuple[float, list[int]]:
        def count() -> float:
            return narrow.metric("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="reused")

        before = count()
        answer = ask_grpc(narrow.grpc, text_input=prompt, max_tokens=8, ignore_eos=True, **fields)
        until(lambda: narrow.num_active == 0, 60, "the metrics to follow")
        time.sleep(0.3)
        return count() - before, answer.output_ids

    first, ids = reused(cache_salt="ours")
    again, ids_again = reused(cache_salt="ours")
    theirs, ids_theirs = reused(cache_salt="theirs")
    opted_out, ids_out = reused(cache_salt="ours", reuse_cache=False)
    assert (first, theirs, opted_out) == (0, 0, 0)
    assert again >= 3
    assert ids == ids_again == ids_theirs == ids_out


def test_scheduling_settings_said_at_serve_time_are_checked_by_name(narrow_repository: Path, tmp_path: Path) -> None:
    before = (narrow_repository / "core" / "config.pbtxt").read_text()
    for options, problem in (
        (("--token-budget", "1"), "parameters.token_budget: must be from 2 (max_num_seqs)"),
        (("--batch-scheduler-policy", "fifo"), "must be one of guaranteed_no_evict, max_utilization, not 'fifo'"),
    ):
        log = tmp_path / "log"
        with pytest.raises(AssertionError), serve(narrow_repository, log, *options):
            pass
        assert problem in log.read_text()
    assert (narrow_repository / "core" / "config.pbtxt").read_text() == before
