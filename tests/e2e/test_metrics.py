"""Every metric at the port of a real server is accepted: compared with what the clients know of the same requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import grpc_stream, make_inputs
from tests.e2e.metrics_page import IN_BULK, Page, settled_page
from tests.e2e.server import Server, serve, until
from tests.e2e.small_engine import NUM_BLOCKS, NUM_SEQS, NUM_TOKENS, Deployment

LENGTH_BOUNDS = ["10", "50", "100", "500", "1000", "+Inf"]
HISTOGRAMS = (
    "nv_llm_input_token_len", "nv_llm_output_token_len", "nv_llm_time_to_first_token_seconds",
    "nv_llm_queue_time_seconds", "nv_llm_request_latency_seconds", "nv_llm_prefix_hit_rate", "nv_llm_preemptions",
    "nv_llm_draft_acceptance_rate",
)  # fmt: skip


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("deployment"))


@pytest.fixture(scope="module")
def plain(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Server]]:
    with serve(deployment.repository, tmp_path_factory.mktemp("plain") / "log") as server:
        yield deployment, server


@pytest.fixture(scope="module")
def eager(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Server]]:
    """Admits more than there is room for, and proposes draft tokens."""
    log = tmp_path_factory.mktemp("eager") / "log"
    options = ("--batch-scheduler-policy", "max_utilization", "--max-draft-tokens", "4")
    with serve(deployment.repository, log, *options) as server:
        yield deployment, server


def test_metrics_requests_add_up_to_what_their_clients_saw(plain: tuple[Deployment, Server]) -> None:
    deployment, server = plain
    fresh = Page(server)
    assert fresh.num_steps == fresh.ended("length") == fresh.requests("active") == 0
    assert (fresh.requests("max"), fresh.blocks("max"), fresh.blocks("tokens_per")) == (NUM_SEQS, NUM_BLOCKS, 32)
    assert fresh.value("nv_llm_step_time_model", coefficient="base") == 0

    lengths = [(1, 1), (3, 7), (12, 10), (30, 60), (45, 120), (90, 300), (150, 2)]
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        asked = list(
            pool.map(
                lambda item: deployment.ask(server, f"{item[0]} " + "fish " * item[0], item[1], ignore_eos=True),
                lengths,
            )
        )
    # One that ends by itself: where it first says what it said last.
    ids = asked[3].answer.output_ids
    asked.append(deployment.ask(server, "30 " + "fish " * 30, 60, end_id=ids[-1], reuse_cache=False))
    elapsed = time.monotonic() - began
    page = settled_page(server)

    answers = [one.answer for one in asked]
    inputs, outputs = [one.num_input_tokens for one in asked], [len(answer.output_ids) for answer in answers]
    assert outputs[-1] == ids.index(ids[-1]) + 1
    assert inputs == [answer.num_input_tokens for answer in answers]
    assert [answer.finish_reason for answer in answers] == ["length"] * 7 + ["eos"]
    assert {reason: page.ended(reason) for reason in ("length", "eos", "cancelled", "error")} == {
        "length": 7, "eos": 1, "cancelled": 0, "error": 0,
    }  # fmt: skip
    assert page.value("nv_llm_input_tokens_total") == sum(inputs)
    assert page.value("nv_llm_output_tokens_total") == sum(outputs)
    for family, tokens in (("nv_llm_input_token_len", inputs), ("nv_llm_output_token_len", outputs)):
        expected = {le: sum(number <= float(le) for number in tokens) for le in LENGTH_BOUNDS}
        assert page.buckets(family) == expected
        assert (page.value(f"{family}_sum"), page.value(f"{family}_count")) == (sum(tokens), len(tokens))

    for family in (*HISTOGRAMS, *IN_BULK):
        buckets = list(page.buckets(family).values())
        assert buckets == sorted(buckets)
        assert buckets[-1] == page.value(f"{family}_count")
    for family in HISTOGRAMS:
        assert page.kinds[family] == "histogram"
    assert 'nv_llm_inter_token_latency_seconds_bucket{le="+Inf",model="core",version="1"} ' in page.text

    # All prompts begin differently, and the last was told not to look.
    assert page.value("nv_llm_cached_input_tokens_total") == page.blocks("reused") == 0
    assert page.buckets("nv_llm_prefix_hit_rate")["0"] == len(asked)
    assert page.buckets("nv_llm_preemptions")["0"] == len(asked)
    assert page.value("nv_llm_draft_acceptance_rate_count") == page.value("nv_llm_draft_tokens_total") == 0

    assert page.num_steps == page.value("nv_llm_step_time_seconds_count") == page.value("nv_llm_step_tokens_count")
    assert page.value("nv_llm_step_tokens_sum") == sum(inputs) + sum(outputs) - len(asked)
    assert page.value("nv_llm_inter_token_latency_seconds_count") == sum(outputs) - len(asked)

    queue = page.value("nv_llm_queue_time_seconds_sum")
    first = page.value("nv_llm_time_to_first_token_seconds_sum")
    latency = page.value("nv_llm_request_latency_seconds_sum")
    gaps = page.value("nv_llm_inter_token_latency_seconds_sum")
    assert 0 < queue < first < sum(one.first_seconds for one in asked)
    assert 0.1 * sum(one.seconds for one in asked) < latency < sum(one.seconds for one in asked)
    assert 0.8 * (latency - first) < gaps <= latency - first
    for family in ("queue_time", "time_to_first_token", "request_latency"):
        assert page.value(f"nv_llm_{family}_seconds_count") == len(asked)
    step_seconds = page.value("nv_llm_step_time_seconds_sum")
    assert gaps / NUM_SEQS / 2 < step_seconds < elapsed
    # What was learned says of a stream's step what steps have taken.
    mean_seconds = step_seconds / page.num_steps
    base, per_token, per_pair, per_row = (
        page.value("nv_llm_step_time_model", coefficient=name) for name in ("base", "per_token", "per_pair", "per_row")
    )
    assert mean_seconds / 10 < base + per_token + 100 * per_pair + per_row < mean_seconds * 10


def test_metrics_a_repeated_prompt_is_read_from_the_cache_in_full_blocks(plain: tuple[Deployment, Server]) -> None:
    deployment, server = plain
    text = "again " + "shoal " * 40
    deployment.ask(server, text, 5, ignore_eos=True)
    before = settled_page(server)
    asked = deployment.ask(server, text, 5, ignore_eos=True)
    page = settled_page(server)
    num_blocks = (asked.num_input_tokens - 1) // 32
    assert num_blocks >= 2
    more = partial(page.more_than, before)
    assert page.blocks("reused") - before.blocks("reused") == num_blocks
    assert more("nv_llm_cached_input_tokens_total") == 32 * num_blocks
    assert more("nv_llm_prefix_hit_rate_sum") == pytest.approx(32 * num_blocks / asked.num_input_tokens)
    assert more("nv_llm_prefix_hit_rate_count") == 1
    assert more("nv_llm_step_tokens_sum") == asked.num_input_tokens - 32 * num_blocks + 4


def test_metrics_requests_that_end_badly_count_as_such(plain: tuple[Deployment, Server]) -> None:
    deployment, server = plain
    before = settled_page(server)
    fields = {"text_input": "gone", "max_tokens": 600, "stream": True, "ignore_eos": True}
    with grpc_stream(server.grpc, make_inputs(grpcclient, fields)) as results:
        num_received = next(results).as_numpy("output_ids").size
    cancelled = settled_page(server)
    with pytest.raises(InferenceServerException, match="timeout_ms"):
        deployment.ask(server, "too late", 600, ignore_eos=True, timeout_ms=25)
    page = settled_page(server)
    assert cancelled.ended("cancelled") - before.ended("cancelled") == 1
    assert page.ended("timeout") - cancelled.ended("timeout") == 1
    assert page.ended("length") == before.ended("length")
    num_output = cancelled.more_than(before, "nv_llm_output_tokens_total")
    num_gaps = cancelled.more_than(before, "nv_llm_inter_token_latency_seconds_count")
    assert num_received <= num_output < 600
    assert num_gaps == num_output - 1
    for family in ("nv_llm_output_token_len", "nv_llm_request_latency_seconds"):
        assert page.more_than(before, f"{family}_count") == 0, "they do not say how long requests are, or take"


def test_metrics_gauges_follow_the_load_and_return_to_nothing(plain: tuple[Deployment, Server]) -> None:
    deployment, server = plain
    num_requests = NUM_SEQS + 3

    def shows(seen: Callable[[Page], bool]) -> None:
        until(lambda: seen(Page(server)), 60, "the gauges show the load")

    stop = threading.Event()

    def keep_asking(index: int, num_fish: int, max_tokens: int) -> None:
        while not stop.is_set():
            deployment.ask(server, f"{index} {time.monotonic()} " + "eel " * num_fish, max_tokens, ignore_eos=True)

    with ThreadPoolExecutor(num_requests + 2) as pool:
        try:
            asking = [pool.submit(keep_asking, index, 1, 230) for index in range(num_requests)]
            shows(
                lambda page: (
                    page.requests("active") == num_requests
                    and page.requests("scheduled") == page.batcher("generation_requests") == NUM_SEQS
                    and page.requests("waiting") == num_requests - NUM_SEQS
                )
            )
            # A page may fall between two gauges being set, so this too may take more than one.
            shows(lambda page: 0 < page.blocks("used") == NUM_BLOCKS - page.blocks("free"))
            shows(lambda page: 0 < page.blocks("fraction") == page.blocks("used") / NUM_BLOCKS)
            asking += [pool.submit(keep_asking, index, 200, 1) for index in (-1, -2)]
            shows(lambda page: page.requests("context") > 0)
            shows(lambda page: 0 < page.batcher("total_context_tokens") <= NUM_TOKENS)
        finally:
            stop.set()
        for one in asking:
            one.result()
    page = settled_page(server)
    assert page.value("nv_trt_llm_general_metrics", general_type="timestamp") == pytest.approx(time.time(), abs=30)
    assert {kind: page.requests(kind) for kind in ("active", "scheduled", "context", "waiting")} == {
        "active": 0, "scheduled": 0, "context": 0, "waiting": 0,
    }  # fmt: skip
    assert (page.blocks("used"), page.blocks("free"), page.blocks("fraction")) == (0, NUM_BLOCKS, 0)
    for kind in ("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"):
        assert page.batcher(kind) == 0
    assert page.num_steps == page.value("nv_llm_step_time_seconds_count")


def test_metrics_accepted_draft_tokens_save_the_steps_that_they_should(eager: tuple[Deployment, Server]) -> None:
    """Sampling now and then leaves the circle in which the model would go, so that some draft tokens are refused."""
    deployment, server = eager
    with ThreadPoolExecutor(NUM_SEQS) as pool:  # steps of all sizes, to learn from what draft tokens cost
        list(
            pool.map(lambda index: deployment.ask(server, f"{index} " + "c " * (5 * index), 20 + 10 * index), range(12))
        )
    before = settled_page(server)
    all_drafted = all_accepted = 0.0
    for index in range(30):
        asked = deployment.ask(
            server, f"{index} " + "a b " * (index % 6), 200, ignore_eos=True, temperature=index % 3 / 4
        )
        page = settled_page(server)
        more = partial(page.more_than, before)
        drafted, accepted = more("nv_llm_draft_tokens_total"), more("nv_llm_accepted_draft_tokens_total")
        # The prompt takes one step, and every further step gives one token and the accepted draft tokens.
        assert asked.num_input_tokens <= NUM_TOKENS
        assert page.num_steps - before.num_steps == 200 - accepted
        assert more("nv_llm_step_tokens_sum") == asked.num_input_tokens + 199 - accepted + drafted
        assert more("nv_llm_inter_token_latency_seconds_count") == 199
        assert more("nv_llm_draft_acceptance_rate_count") == (drafted > 0)
        assert more("nv_llm_draft_acceptance_rate_sum") == pytest.approx(accepted / drafted if drafted else 0)
        all_drafted, all_accepted, before = all_drafted + drafted, all_accepted + accepted, page
        if 0 < all_accepted < all_drafted:
            return
    raise AssertionError(f"{all_accepted} of {all_drafted} draft tokens were accepted")


def test_metrics_preemptions_are_counted_when_room_runs_out(eager: tuple[Deployment, Server]) -> None:
    deployment, server = eager
    before = settled_page(server)
    paused: list[float] = []
    with ThreadPoolExecutor(NUM_SEQS) as pool:
        asking = [
            pool.submit(deployment.ask, server, f"{index} crowd", 600, ignore_eos=True, temperature=1.0, seed=index)
            for index in range(NUM_SEQS)
        ]
        while not all(one.done() for one in asking):
            paused.append(Page(server).batcher("paused_requests"))
            time.sleep(0.02)
    assert all(len(one.result().answer.output_ids) == 600 for one in asking)
    page = settled_page(server)
    preempted = page.more_than(before, "nv_llm_preemptions_total")
    # Four sequences of more than 600 tokens cannot be in 1024 tokens of room together.
    assert preempted >= 2
    assert page.more_than(before, "nv_llm_preemptions_sum") == preempted
    buckets = np.array(list(page.buckets("nv_llm_preemptions").values()))
    earlier = np.array(list(before.buckets("nv_llm_preemptions").values()))
    assert (buckets - earlier)[0] < NUM_SEQS
    assert (buckets - earlier)[-1] == NUM_SEQS
    assert max(paused) >= 1
    assert page.batcher("paused_requests") == 0
    assert page.ended("length") - before.ended("length") == NUM_SEQS
