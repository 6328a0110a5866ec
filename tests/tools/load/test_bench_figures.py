"""The figures of a benchmark against numbers worked out by hand or by numpy, and what they are shown as."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trident_tools.load.bench_report import Outcome, render_json, stage_table, summary_table
from trident_tools.load.charts import Line, make_chart, steps
from trident_tools.load.client_records import ClientRequestRecord, ClientStream, error_kind
from trident_tools.load.loads import ClosedLoop, Load, OpenLoop
from trident_tools.load.objectives import parse_objective
from trident_tools.load.page import render_page
from trident_tools.load.stage_progress import recent
from trident_tools.load.stage_result import StageResult
from trident_tools.load.statistics import MeasuredWindow, StageFigures, measure

VOID = {"meta", "br", "hr", "line", "circle", "path"}


def record(
    scheduled_at: float,
    chunk_times: Sequence[float],
    chunk_tokens: Sequence[int] | None = None,
    *,
    num_output_tokens: int | None = None,
    sent_at: float | None = None,
    error: str = "",
) -> ClientRequestRecord:
    counts = tuple(chunk_tokens) if chunk_tokens is not None else None
    total = sum(counts) if num_output_tokens is None and counts is not None else num_output_tokens
    sent = scheduled_at if sent_at is None else sent_at
    return ClientRequestRecord(scheduled_at, sent, tuple(chunk_times), counts, 5, total, "length", error)


def test_bench_figures_one_request_by_hand() -> None:
    one = record(10.0, [10.5, 10.6, 11.0], [1, 2, 2], sent_at=10.25)
    assert one.time_to_first_token == pytest.approx(0.5), "from the scheduled moment, not from the sending"
    assert one.request_latency == pytest.approx(1.0)
    assert one.inter_token_latency == pytest.approx(0.5 / 4), "five tokens: four gaps"
    assert one.inter_chunk_latencies == pytest.approx([0.1, 0.4])


def test_bench_figures_a_single_token_has_no_token_latency() -> None:
    assert record(0.0, [1.0], [1]).inter_token_latency is None
    assert record(0.0, [1.0, 2.0], None).inter_token_latency is None, "nor has an unknown number"


def test_bench_figures_tokens_of_chunks_that_do_not_say_are_shared_out() -> None:
    assert record(0.0, [1.0, 2.0], num_output_tokens=5).tokens_of_chunks() == [2.5, 2.5]


def test_bench_figures_percentiles_are_numpys() -> None:
    random = np.random.default_rng(3)
    first, gaps = random.uniform(0.1, 2.0, 237), random.uniform(0.01, 0.1, (237, 9))
    records = [
        record(10 + index / 100, (10 + index / 100 + first[index] + np.cumsum([0, *gaps[index]])).tolist(), [1] * 10)
        for index in range(237)
    ]
    figures = measure(records, 0.0, MeasuredWindow(10, 20), [])

    def same(name: str, values: Any) -> None:
        summary = figures.summaries[name]
        for number in (50, 90, 95, 99):
            assert summary.percentiles[number] == pytest.approx(np.percentile(values, number)), (name, number)
        assert (summary.avg, summary.min, summary.max) == pytest.approx((values.mean(), values.min(), values.max()))

    token = gaps.mean(axis=1)
    same("time_to_first_token", first * 1000)
    same("inter_token_latency", token * 1000)
    same("inter_chunk_latency", gaps.reshape(-1) * 1000)
    same("request_latency", (first + gaps.sum(axis=1)) * 1000)
    same("output_token_throughput_per_user", 1 / token)
    same("output_sequence_length", np.full(237, 10.0))
    same("input_sequence_length", np.full(237, 5.0))


def test_bench_figures_what_counts() -> None:
    """Requests by when they were scheduled; tokens and ends by when they came."""
    records = [
        record(1.0, [9.0, 10.5], [1, 3]),  # of the ramp: only its tokens and its end within the window count
        record(12.0, [12.1, 12.2], [1, 1]),
        record(19.0, [19.5, 25.0], [1, 7]),  # ends in the grace: counts, its last tokens do not
        record(20.0, [20.1], [1]),  # the window's end is outside
        record(13.0, [13.5], [2], error="[UNAVAILABLE] 17 requests wait"),  # its tokens did arrive
        record(14.0, [], [], error="[UNAVAILABLE] 18 requests wait"),
        record(15.0, [], [], error="unfinished"),
        record(2.0, [], [], error="of the ramp"),
    ]
    figures = measure(records, 0.0, MeasuredWindow(10.0, 20.0), [parse_objective("request_latency:1000")])
    assert figures.num_requests == 2
    assert figures.summaries["time_to_first_token"].max == pytest.approx(500)
    assert figures.output_token_throughput == pytest.approx((3 + 2 + 1 + 2) / 10)
    assert figures.request_throughput == pytest.approx(2 / 10), "two ended well within the window"
    assert figures.errors == {"[UNAVAILABLE] N requests wait": 2, "unfinished": 1}
    assert figures.num_errors == 3
    assert figures.goodput == pytest.approx(1 / 10), "the other one took six seconds"
    assert sum(figures.timeline) == pytest.approx(4 + 2 + 1 + 2), "of the whole stage"
    assert figures.timeline[10] == pytest.approx(3)


def test_bench_figures_goodput_needs_every_objective() -> None:
    records = [
        record(0.0, [0.1, 0.2], [1, 1]),
        record(0.0, [0.6, 0.7], [1, 1]),  # late first token
        record(0.0, [0.1, 0.9], [1, 1]),  # slow tokens
        record(0.0, [0.1], [1]),  # one token: nothing to be slow with
    ]
    objectives = [parse_objective("time_to_first_token:500"), parse_objective("inter_token_latency:100")]
    assert measure(records, 0.0, MeasuredWindow(0, 2), objectives).goodput == pytest.approx(2 / 2)
    assert measure(records, 0.0, MeasuredWindow(0, 2), objectives[:1]).goodput == pytest.approx(3 / 2)
    assert measure(records, 0.0, MeasuredWindow(0, 2), []).goodput is None


@pytest.mark.parametrize("text", ["time_to_first_token", "time_to_first_token:0", "ttft:5", "request_latency:x"])
def test_bench_figures_objectives_that_say_nothing(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_objective(text)


def test_bench_figures_nothing_happened() -> None:
    figures = measure([], 0.0, MeasuredWindow(5, 5), [])
    assert (figures.output_token_throughput, figures.summaries, figures.timeline[:4]) == (0, {}, (0, 0, 0, 0))


def test_bench_figures_equal_errors_count_together() -> None:
    assert error_kind("waited 12.5 ms,\nlimit 10") == error_kind("waited 7 ms, limit 99") == "waited N ms, limit N"
    assert error_kind("[503] [UNAVAILABLE] 17 wait") == "[503] [UNAVAILABLE] N wait"


def test_bench_figures_progress_of_the_last_seconds() -> None:
    slow, quick, old = ClientStream(0.0, 0.0), ClientStream(8.0, 8.0), ClientStream(0.0, 0.0)
    for moment in (1.0, 6.0, 9.0):
        slow.received(moment, 1)
    quick.received(8.5, 2)
    quick.received(8.7, 2)
    old.received(1.0, 4)
    first_token, token, tokens_per_s = recent([slow, quick, old], 5.0, 10.0)
    assert first_token == (0.5,)
    assert token == pytest.approx((4.0, 0.1))
    assert tokens_per_s == pytest.approx((2 + 4) / 5)


@pytest.mark.parametrize("highest", [0.003, 0.99, 1.0, 7.0, 99.0, 1234.5, 5e6])
def test_bench_figures_axes_reach_the_data(highest: float) -> None:
    ticks = steps(highest)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-2] < highest <= ticks[-1] * (1 + 1e-9)


def test_bench_figures_a_chart_is_to_scale() -> None:
    chart = make_chart("t", "x", "y", [Line("a", ((0.0, 0.0), (50.0, 100.0), (100.0, 50.0)))])
    assert chart is not None
    numbers = [tuple(map(float, pair.split(","))) for pair in chart.lines[0].path[1:].split(" L")]
    middle = ((chart.left + chart.right) / 2, (chart.top + chart.bottom) / 2)
    expected = [(chart.left, chart.bottom), (middle[0], chart.top), (chart.right, middle[1])]
    assert np.array(numbers) == pytest.approx(np.array(expected), abs=0.06)
    assert make_chart("t", "x", "y", [Line("a", ())]) is None


def outcome() -> Outcome:
    stages = []
    loads: list[Load] = [ClosedLoop(2), ClosedLoop(4), OpenLoop(1.5)]
    for index, load in enumerate(loads):
        records = tuple(record(when, [when + 0.2 + index, when + 1.2 + index], [1, 9]) for when in (1.0, 2.0, 3.0, 9.0))
        bad = record(4.0, [], [], error='<script>alert("1")</script> & more')
        result = StageResult(
            load, "2025-01-01T00:00:00+00:00", 0.0, MeasuredWindow(1, 9), (*records, bad), None, 0.95, False
        )
        stages.append((result, measure(result.records, 0.0, result.window, [])))
    return Outcome({"users": [2, 4], "prompts": None, "field": {"tenant": "a"}}, "ensemble", ("a note",), tuple(stages))


def test_bench_figures_the_json_holds_the_figures() -> None:
    parsed = json.loads(render_json(outcome(), with_records=True))
    stage = parsed["stages"][2]
    assert (parsed["format"], stage["load"], stage["requests"]) == (1, {"rate": 1.5}, 3)
    assert stage["metrics"]["time_to_first_token"]["p50"] == pytest.approx(2200)
    assert stage["metrics"]["output_token_throughput_per_user"]["unit"] == "tokens/s"
    assert [entry["counts"] for entry in stage["records"]] == [True, True, True, False, True]
    assert stage["records"][4]["error"].startswith("<script>")
    assert "records" not in json.loads(render_json(outcome(), with_records=False))["stages"][0]


class _Page(HTMLParser):
    """Checks that elements are closed in order, and keeps text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}, "nothing is fetched"
        if tag not in VOID or tag == "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID - {"path"} and self.open and self.open[-1] == "circle":
            self.open.pop()
        if tag != "circle":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_bench_figures_the_page_stands_alone() -> None:
    html = render_page(outcome())
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.tags.count("svg") == 5, "two of throughput against latency, two distributions, one over time"
    assert page.tags.count("circle") == 2 * 3, "a point a stage"
    assert "http" not in html
    assert "url(" not in html
    assert "script" not in page.tags, "what a server said stays text"
    assert '1 × <script>alert("N")</script> & more' in page.text
    assert "tenant=a" in page.text


def test_bench_figures_the_tables_say_it_all() -> None:
    console = Console(file=io.StringIO(), width=140)
    stages = outcome().stages
    console.print(stage_table(*stages[0]), summary_table(stages))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for words in ("2 users, 8.0 s", "time_to_first_token (ms)", "200.0", "1.5 requests/s", '1 x <script>alert("N")'):
        assert words in text, words


def test_bench_figures_figures_are_frozen() -> None:
    figures: StageFigures = outcome().stages[0][1]
    with pytest.raises(AttributeError):
        figures.num_requests = 3  # type: ignore[misc]
