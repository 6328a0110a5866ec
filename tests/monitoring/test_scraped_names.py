"""Every metric and label in rules and panels is on the page of a real gateway, of a rollout, or of an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop
from prometheus_client import CollectorRegistry, generate_latest

from tests.fakes.tensorrtllm_metrics import page as tensorrtllm_page
from tests.fakes.triton_http import FakeTriton
from tests.gateway.process import GatewayProcess, completion
from tests.monitoring.expressions import (
    TARGET_LABELS,
    Expression,
    Sample,
    grouping_labels,
    panel_expressions,
    read_page,
    rule_expressions,
    rules,
    selectors,
)
from tests.monitoring.gateway_pages import eventful_page, make_keys, page_of, page_with_a_canary
from trident_tools.rollouts.rollout_metrics import RolloutMetrics

LIMIT_S = 120
NUM_TENANTS, NUM_LABELLED = 1000, 200
#: What only a fault makes that is not to be had here: the reader of a pipe that is too slow, a collector that is gone,
#: and more connections than a gateway takes. Their labels are on the page by another value.
BY_OTHER_VALUES = {("part", "request_log"), ("part", "traces"), ("code", "503")}
EXPRESSIONS = [*rule_expressions(), *panel_expressions()]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], set[str]]:
    folder = tmp_path_factory.mktemp("pages")

    async def pages() -> list[str]:
        return [await eventful_page(folder), await page_with_a_canary(folder)]

    registry = CollectorRegistry()
    registry.register(RolloutMetrics({}))
    texts = [*uvloop.run(asyncio.wait_for(pages(), LIMIT_S)), generate_latest(registry).decode()]
    samples: list[Sample] = []
    families: set[str] = set()
    for text in texts:
        more, declared = read_page(text)
        samples += more
        families |= declared
    return samples, families


def names_of(expressions: list[Expression], prefix: str) -> list[str]:
    return sorted(
        {one.metric for each in expressions for one in selectors(each.promql) if one.metric.startswith(prefix)}
    )


@pytest.mark.parametrize("metric", names_of(EXPRESSIONS, "trident_"))
def test_scraped_names_of_gateways_and_rollouts(metric: str, scraped: tuple[list[Sample], set[str]]) -> None:
    samples = [sample for sample in scraped[0] if sample.metric == metric]
    assert samples, "no real page has it"
    labels = {label for sample in samples for label in sample.labels} | TARGET_LABELS
    for each in EXPRESSIONS:
        for one in selectors(each.promql):
            if one.metric != metric:
                continue
            assert {label for label, _, _ in one.matchers} <= labels, each.name
            if not BY_OTHER_VALUES & {(label, wanted) for label, _, wanted in one.matchers}:
                assert any(one.selects(sample.labels) for sample in samples), each.name


def test_scraped_names_expressions_group_by_labels_that_are_there(scraped: tuple[list[Sample], set[str]]) -> None:
    """Of the metrics in each expression; those of recorded series are what their own rules group by."""
    samples = [*scraped[0], *read_page(tensorrtllm_page(1))[0]]
    recorded = {rule["record"]: grouping_labels(rule["expr"]) for rule in rules() if "record" in rule}
    for each in EXPRESSIONS:
        metrics = {one.metric for one in selectors(each.promql)}
        labels = {label for sample in samples if sample.metric in metrics for label in sample.labels}
        labels |= {label for metric in metrics for label in recorded.get(metric, set())}
        if any(metric.startswith("nv_") for metric in metrics):  # the e2e test looks at a real page of the core
            labels |= {"model", "version", "finish_reason", "le"}
        assert grouping_labels(each.promql) <= labels | TARGET_LABELS, each.name


def test_scraped_names_recorded_series_are_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(names_of(EXPRESSIONS, "trident:")) <= recorded


@pytest.mark.slow
def test_scraped_names_labels_stay_few_with_a_thousand_tenants(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys.json", *(f"tenant-{index}" for index in range(NUM_TENANTS)))

    async def test() -> str:
        options = ("--drain-delay", "0", "--keys", str(tmp_path / "keys.json"))
        async with FakeTriton() as fake, GatewayProcess(fake, options=options) as gateway:
            for begin in range(0, NUM_TENANTS, 50):
                replies = await asyncio.gather(
                    *(gateway.ask("/v1/completions", completion(max_tokens=1), key) for key in keys[begin : begin + 50])
                )
                assert {reply.status for reply in replies} == {200}
            while (page := await page_of(gateway)) and num_answered(page) < NUM_TENANTS:
                await asyncio.sleep(0.05)  # the last ones are counted after their answers
            return page

    def num_answered(page: str) -> float:
        return sum(sample.value for sample in read_page(page)[0] if sample.labels.get("kind") == "output")

    samples, _ = read_page(uvloop.run(asyncio.wait_for(test(), LIMIT_S)))
    tenants = {sample.labels["tenant"] for sample in samples if "tenant" in sample.labels}
    assert len(tenants) == NUM_LABELLED + 1
    assert "other" in tenants
    # Three kinds of tokens for each, and everything else that one model and one server have.
    assert len(samples) < 3 * (NUM_LABELLED + 1) + 150
