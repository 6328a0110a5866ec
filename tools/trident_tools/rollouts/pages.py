"""The metrics page of one gateway, as far as a rollout reads it.

Owns the names of the metrics and what counts as an error. Never fetches a page, and never compares two.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from trident_tools.rollouts.figures import Histogram, SideFigures

STABLE = "stable"
CANARY = "canary"
#: The routes by which text is generated; questions about models and tokens are no load.
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_PREFIX = "trident_gateway_"
_REFUSED = "400"
_LIMITED = "429"
_GONE = "499"
_LENGTH = "length"
_COUNTED = (
    "requests_total", "finishes_total", "canary_fallbacks_total", "server_ejections_total",
    "ttft_seconds_bucket", "ttft_seconds_sum", "itl_seconds_bucket", "itl_seconds_sum",
)  # fmt: skip
#: What a stream ends with that has broken after its status 200.
_ERROR = "error"


@dataclass(frozen=True)
class Page:
    """The page of one gateway at one moment.

    Args:
        weight: percent of callers that it sends to the canary; None if it says nothing of it.
        figures: side -> what it has counted since its start.
        num_ready: side -> servers in rotation.
    """

    weight: float | None
    figures: Mapping[str, SideFigures]
    num_ready: Mapping[str, int]


def parse_page(text: str, models: Collection[str] | None = None) -> Page:
    """Read a page.

    Args:
        text: in Prometheus's text format.
        models: whose requests count; None for all.

    Raises:
        ValueError: it is not the page of a gateway that tells sides apart.
    """
    try:
        return _parse(text, models)
    except KeyError as error:
        raise ValueError(f"this is no metrics page of a gateway that has sides: the label {error} is missing") from None


def _parse(text: str, models: Collection[str] | None) -> Page:
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(_PREFIX)
            if name in _COUNTED and not 0 <= sample.value < math.inf:
                raise ValueError(f"{sample.name} is {sample.value}, which nothing can be counted with")
            samples[name].append(sample)
    ready = samples["server_ready"]
    if "draining" not in samples or any("side" not in sample.labels for sample in ready):
        raise ValueError("this is no metrics page of a gateway that has sides; is it the private port of one?")
    sides = (STABLE, CANARY)
    return Page(
        next((sample.value for sample in samples["route_weight"] if sample.labels.get("side") == CANARY), None),
        {side: _figures(samples, side, models) for side in sides},
        {side: sum(sample.value > 0 for sample in ready if sample.labels["side"] == side) for side in sides},
    )


def _figures(samples: Mapping[str, list[Sample]], side: str, models: Collection[str] | None) -> SideFigures:
    def of_models(name: str) -> list[Sample]:
        return [sample for sample in samples.get(name, ()) if models is None or sample.labels["model"] in models]

    def of_side(name: str) -> list[Sample]:
        return [sample for sample in of_models(name) if sample.labels["side"] == side]

    asked = [sample for sample in of_side("requests_total") if sample.labels["route"] in ROUTES]
    # Whom a limit refuses, and who does not wait for an answer, has had none to be judged.
    requests = [sample for sample in asked if sample.labels["code"] not in (_LIMITED, _GONE)]
    finishes = of_side("finishes_total")
    # Calls that the canary could not take, and the stable side has answered in its place, as one of its own.
    lost = 0.0
    if side == CANARY:
        lost = sum(sample.value for sample in of_models("canary_fallbacks_total"))
    broken = sum(sample.value for sample in finishes if sample.labels["reason"] == _ERROR)
    return SideFigures(
        requests=lost + sum(sample.value for sample in requests),
        errors=lost + broken + sum(sample.value for sample in requests if sample.labels["code"] >= "500"),
        refusals=sum(sample.value for sample in requests if sample.labels["code"] == _REFUSED),
        gone=sum(sample.value for sample in asked if sample.labels["code"] == _GONE),
        finishes=sum(sample.value for sample in finishes) - broken,
        lengths=sum(sample.value for sample in finishes if sample.labels["reason"] == _LENGTH),
        ejections=sum(
            sample.value for sample in samples.get("server_ejections_total", ()) if sample.labels.get("side") == side
        ),
        ttft=_histogram(of_side("ttft_seconds_bucket"), of_side("ttft_seconds_sum")),
        itl=_histogram(of_side("itl_seconds_bucket"), of_side("itl_seconds_sum")),
    )


def _histogram(buckets: list[Sample], sums: list[Sample]) -> Histogram:
    """Return the series of several models as one histogram."""
    cumulative: defaultdict[float, float] = defaultdict(float)
    for sample in buckets:
        cumulative[float(sample.labels["le"].replace("+Inf", "inf"))] += sample.value
    counts: dict[float, float] = {}
    below = 0.0
    for bound in sorted(cumulative):
        counts[bound], below = cumulative[bound] - below, cumulative[bound]
        if counts[bound] < 0:
            raise ValueError("the buckets of a histogram do not grow")
    if counts and math.inf not in counts:
        raise ValueError("a histogram has no last bucket")
    return Histogram(counts, sum(sample.value for sample in sums))
