"""What is published: compared with sums made by hand and by numpy, however the records are split over publications."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.fakes.core import SPEC
from tests.fakes.metrics_page import LABELS, Page
from trident_backend.metrics.gauges import CoreMetrics
from trident_backend.metrics.histograms import SECONDS, STEP_TOKENS
from trident_backend.metrics.instruments import BulkHistogram, Gauge
from trident_backend.metrics.instruments import Counter as Sum
from trident_backend.metrics.loop_stats import LoopStats
from trident_backend.metrics.records import RequestRecord, StepRecord
from trident_backend.sequences.sequence import FinishReason
from trident_backend.sequences.step_time import StepTime

Records = list[StepRecord | RequestRecord]


def _buckets(page: Page, family: str, bounds: Sequence[float]) -> list[float]:
    return [page.value(f"{family}_bucket", le=f"{bound:g}") for bound in bounds] + [
        page.value(f"{family}_bucket", le="+Inf")
    ]


def _check_histogram(page: Page, family: str, bounds: Sequence[float], values: Sequence[float]) -> None:
    """The page's series are those of these values."""
    array = np.array(values)
    cumulative = (array[:, None] <= np.array([*bounds, math.inf])).sum(axis=0)
    assert _buckets(page, family, bounds) == cumulative.tolist()
    assert page.value(f"{family}_count") == array.size
    assert page.value(f"{family}_sum") == pytest.approx(array.sum())


@pytest.mark.parametrize("seed", range(5))
def test_metrics_a_bulk_histogram_has_the_series_of_its_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bounds = (0.0, 0.5, 1.0, 2.5)
    page, values = Page(), []
    histogram = BulkHistogram(page, "h", "d", LABELS, bounds)
    for _ in range(20):
        for value in rng.choice([*bounds, *rng.uniform(0, 4, 6)], rng.integers(0, 5)):
            count = int(rng.integers(1, 4))
            histogram.observe(float(value), count)
            values += [float(value)] * count
        histogram.publish()
    _check_histogram(page, "h", bounds, values)


def test_metrics_a_bulk_histogram_is_never_seen_with_a_bucket_fuller_than_a_wider_one() -> None:
    page = Page()
    histogram = BulkHistogram(page, "h", "d", LABELS, SECONDS)
    seen: list[list[float]] = []
    page.after_message = lambda: seen.append(_buckets(page, "h", SECONDS))
    for value in (0.0001, 0.02, 3.0, 1000.0):
        histogram.observe(value)
    histogram.publish()
    assert len(seen) > len(SECONDS)
    assert all(buckets == sorted(buckets) for buckets in seen)


def test_metrics_nothing_is_sent_twice_or_without_need() -> None:
    sent: list[float] = []
    gauge, total = Gauge(sent.append), Sum(sent.append)
    for value in (0.0, 0.0, 2.0, 2.0, 0.0):
        gauge.set(value)
    assert sent == [0.0, 2.0, 0.0]
    total.publish()
    total.add(3)
    total.add(4)
    total.publish()
    total.publish()
    assert sent[3:] == [7.0]


def test_metrics_a_sum_never_shrinks() -> None:
    with pytest.raises(AssertionError):
        Sum(lambda _: None).add(-1e-9)


def _random_records(rng: random.Random) -> Records:
    records: Records = []
    for _ in range(300):
        if rng.random() < 0.6:
            gaps = tuple(
                (rng.choice([0.001, rng.expovariate(20)]), rng.randrange(1, 5)) for _ in range(rng.randrange(6))
            )
            num_tokens = rng.randrange(1, 3000)
            records.append(
                StepRecord(rng.expovariate(30), num_tokens, rng.randrange(num_tokens), rng.randrange(3), gaps)
            )
            continue
        never_ran = rng.random() < 0.2
        num_input, num_output = rng.randrange(1, 1500), 0 if never_ran else rng.randrange(0, 1200)
        num_draft = rng.choice([0, 0 if never_ran else rng.randrange(1, 90)])
        queue = None if never_ran else rng.expovariate(1)
        first = None if queue is None or not num_output else queue + rng.expovariate(1)
        records.append(
            RequestRecord(
                finish_reason=rng.choice(list(FinishReason)),
                num_input_tokens=num_input,
                num_output_tokens=num_output,
                num_cached_tokens=0 if never_ran else rng.randrange(num_input),
                num_preemptions=rng.randrange(4),
                num_draft_tokens=num_draft,
                num_accepted_tokens=rng.randrange(num_draft + 1),
                queue_seconds=queue,
                first_token_seconds=first,
                latency_seconds=(first or 0.0) + rng.expovariate(1),
            )
        )
    return records


@pytest.mark.parametrize("seed", range(5))
def test_metrics_records_add_up_however_they_come(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 (a test's choice)
    records = _random_records(rng)
    steps = [record for record in records if isinstance(record, StepRecord)]
    requests = [record for record in records if isinstance(record, RequestRecord)]
    page = Page()
    metrics = CoreMetrics(SPEC, LABELS, page)
    rest = list(records)
    while rest:
        size = rng.randrange(20)
        metrics.show(LoopStats(), rest[:size])
        rest = rest[size:]
        if rng.random() < 0.3:
            metrics.publish_sums()
    metrics.publish_sums()

    _check_histogram(page, "nv_llm_step_time_seconds", SECONDS, [step.seconds for step in steps])
    _check_histogram(page, "nv_llm_step_tokens", STEP_TOKENS, [step.num_tokens for step in steps])
    gaps = [seconds for step in steps for seconds, count in step.gaps for _ in range(count)]
    _check_histogram(page, "nv_llm_inter_token_latency_seconds", SECONDS, gaps)
    assert page.value("nv_llm_preemptions_total") == sum(step.num_preempted for step in steps)
    for reason, count in Counter(request.finish_reason.value for request in requests).items():
        assert page.value("nv_llm_requests_total", finish_reason=reason) == count
    ran = [request for request in requests if request.queue_seconds is not None]
    assert len(ran) < len(requests)
    for family, field in {
        "nv_llm_input_tokens_total": "num_input_tokens",
        "nv_llm_cached_input_tokens_total": "num_cached_tokens",
        "nv_llm_output_tokens_total": "num_output_tokens",
        "nv_llm_draft_tokens_total": "num_draft_tokens",
        "nv_llm_accepted_draft_tokens_total": "num_accepted_tokens",
    }.items():
        assert page.value(family) == sum(getattr(request, field) for request in ran)
    whole = (FinishReason.EOS, FinishReason.STOP, FinishReason.LENGTH)
    requests = [request for request in requests if request.finish_reason in whole]
    ran = [request for request in requests if request.queue_seconds is not None]
    drafted = [request for request in requests if request.num_draft_tokens]
    assert page.observed == {
        "nv_llm_input_token_len": [request.num_input_tokens for request in requests],
        "nv_llm_output_token_len": [request.num_output_tokens for request in requests],
        "nv_llm_time_to_first_token_seconds": [
            request.first_token_seconds for request in requests if request.first_token_seconds is not None
        ],
        "nv_llm_queue_time_seconds": [request.queue_seconds for request in ran],
        "nv_llm_request_latency_seconds": [request.latency_seconds for request in requests],
        "nv_llm_prefix_hit_rate": [request.num_cached_tokens / request.num_input_tokens for request in ran],
        "nv_llm_preemptions": [request.num_preemptions for request in requests],
        "nv_llm_draft_acceptance_rate": [request.num_accepted_tokens / request.num_draft_tokens for request in drafted],
    }


def test_metrics_every_end_and_every_bucket_is_there_before_anything_happens() -> None:
    page = Page()
    CoreMetrics(SPEC, LABELS, page).show(LoopStats(), [])
    assert {page.value("nv_llm_requests_total", finish_reason=reason.value) for reason in FinishReason} == {0.0}
    assert set(_buckets(page, "nv_llm_inter_token_latency_seconds", SECONDS)) == {0.0}
    assert page.bounds["nv_llm_output_token_len"] == (10, 50, 100, 500, 1000)
    assert all(list(bounds) == sorted(set(bounds)) for bounds in page.bounds.values())


STATS = LoopStats(
    num_open=9, num_running=5, num_waiting=3, num_interrupted=1, num_paused=2, num_context=1, num_used_blocks=6,
    num_free_blocks=18, num_reused_blocks=7, num_steps=42, step_time=StepTime(0.01, 0.002, 0.00003, 0.0004),
)  # fmt: skip


def test_metrics_each_gauge_shows_what_its_name_says() -> None:
    page = Page()
    metrics = CoreMetrics(SPEC, LABELS, page)
    metrics.show(STATS, [StepRecord(0.1, 12, 10, 0, ()), StepRecord(0.1, 11, 8, 0, ())])
    shown: dict[tuple[str, str], dict[str, float]] = {
        ("nv_trt_llm_request_metrics", "request_type"): {
            "active": 9, "max": SPEC.max_num_seqs, "scheduled": 3, "context": 1, "waiting": 3,
        },
        ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type"): {
            "max": 24, "free": 18, "used": 6, "tokens_per": 4, "reused": 7, "fraction": 0.25,
        },
        ("nv_trt_llm_inflight_batcher_metrics", "inflight_batcher_specific_metric"): {
            "total_context_tokens": 8, "generation_requests": 2, "micro_batch_id": 0, "paused_requests": 3,
        },
        ("nv_llm_step_time_model", "coefficient"): {
            "base": 0.01, "per_token": 0.002, "per_pair": 0.00003, "per_row": 0.0004,
        },
    }  # fmt: skip
    for (family, label), values in shown.items():
        assert {name: page.value(family, **{label: name}) for name in values} == values
    assert page.value("nv_trt_llm_general_metrics", general_type="iteration_counter") == 42
    assert page.value("nv_trt_llm_general_metrics", general_type="timestamp") == pytest.approx(time.time(), abs=5)


def test_metrics_prompt_tokens_of_the_last_step_are_forgotten_when_the_core_is_idle() -> None:
    page = Page()
    metrics = CoreMetrics(SPEC, LABELS, page)

    def shown() -> float:
        return page.value(
            "nv_trt_llm_inflight_batcher_metrics", inflight_batcher_specific_metric="total_context_tokens"
        )

    metrics.show(STATS, [StepRecord(0.1, 12, 10, 0, ())])
    assert shown() == 10
    metrics.show(STATS, [])
    assert shown() == 10, "its next step takes long"
    metrics.show(replace(STATS, num_running=2, num_paused=2), [])
    assert shown() == 0


def test_metrics_an_idle_core_sends_nothing() -> None:
    page = Page()
    metrics = CoreMetrics(SPEC, LABELS, page)
    metrics.show(STATS, [])
    page.messages.clear()
    metrics.show(STATS, [])
    assert page.messages == []
    metrics.show(replace(STATS, num_used_blocks=7, num_free_blocks=17), [])
    assert sorted(set(page.messages)) == ["nv_trt_llm_general_metrics", "nv_trt_llm_kv_cache_block_metrics"]
    assert len(page.messages) == 4, "used, free, fraction and the time"
