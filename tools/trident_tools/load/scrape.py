"""What a server counted while a stage was measured, from its metrics page.

Owns the reading of the page and the difference between two readings. A pair of series `X_sum` and `X_count` is a
histogram X, whatever its declared type: some servers can publish a histogram only as counters. Never decides when to
read.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

#: Families that are read.
PREFIXES = ("nv_llm_", "nv_trt_llm_")
_TIMEOUT_S = 5.0
_TYPE = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)
_PARTS = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Snapshot:
    """A metrics page at one moment.

    A series is named as on the page, its labels in order of their names: `nv_llm_x{model="core",version="1"}`.

    Args:
        counters: value by series.
        gauges: likewise.
        histograms: sum and count by series, the name without its ending.
    """

    counters: Mapping[str, float]
    gauges: Mapping[str, float]
    histograms: Mapping[str, tuple[float, float]]


def read_page(url: str) -> Snapshot:
    """The page at a URL.

    Raises:
        OSError: nobody answers there with a metrics page.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 (checked: http or https)
            return parse_page(reply.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        raise OSError(f"status {error.code}") from None
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(f"no metrics page: {error}") from None


def parse_page(text: str) -> Snapshot:
    """A page's text.

    Raises:
        ValueError: it is no metrics page.
    """
    # The parser renames the series of counters; it is not told of types, so that names stay as they are.
    types = dict(_TYPE.findall(text))
    samples = [
        (sample.name, dict(sample.labels), float(sample.value))
        for family in text_string_to_metric_families(_TYPE.sub("", text))
        for sample in family.samples
        if sample.name.startswith(PREFIXES)
    ]
    values = {_series(name, labels): value for name, labels, value in samples}
    counters, gauges, histograms = {}, {}, {}
    pairs = {name.removesuffix("_count") for name, *_ in samples if name.endswith("_count")} & {
        name.removesuffix("_sum") for name, *_ in samples if name.endswith("_sum")
    }
    for name, labels, value in samples:
        base = next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)
        if base in pairs and base != name:
            if name.endswith("_count"):
                total = values.get(_series(f"{base}_sum", labels), 0.0)
                histograms[_series(base, labels)] = (total, value)
        elif types.get(name) == "counter":
            counters[_series(name, labels)] = value
        else:
            gauges[_series(name, labels)] = value
    return Snapshot(counters, gauges, histograms)


def difference(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """What happened between two readings: counters and histograms as differences, gauges as they were at the end.

    A counter that went down began anew, with a server started again: its whole value counts. The mean of a histogram
    that saw nothing is None.
    """
    histograms = {}
    for series, (total, count) in after.histograms.items():
        old_total, old_count = before.histograms.get(series, (0.0, 0.0))
        if count < old_count:
            old_total, old_count = 0.0, 0.0
        new_total, new_count = total - old_total, count - old_count
        histograms[series] = {
            "sum": new_total,
            "count": new_count,
            "mean": new_total / new_count if new_count else None,
        }
    counters = {}
    for series, value in after.counters.items():
        old = before.counters.get(series, 0.0)
        counters[series] = value - old if value >= old else value
    return {"counters": counters, "histograms": histograms, "gauges": dict(after.gauges)}


def _series(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    pairs = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{pairs}}}"
