"""The server's own counts while a stage was measured, from its metrics page.

Owns the reading of the page, and the difference between two readings. A pair of series `X_sum` and `X_count` is a
histogram X, whatever its declared type, because some servers can only publish a histogram as counters. Never decides
when to read.
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

#: Families of series that are read.
PREFIXES = ("nv_llm_", "nv_trt_llm_")
_TIMEOUT_S = 5.0
_TYPE = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)
_PARTS = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Snapshot:
    """A metrics page at one moment.

    A series is named as on the page, with its labels in order of their names: `nv_llm_x{model="core",version="1"}`.

    Args:
        counters: series -> value.
        gauges: series -> value.
        histograms: series, without the ending of its name -> sum and count.
    """

    counters: Mapping[str, float]
    gauges: Mapping[str, float]
    histograms: Mapping[str, tuple[float, float]]


def read_page(url: str) -> Snapshot:
    """Read the metrics page at a URL.

    Raises:
        OSError: no metrics page is answered there.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 (checked: http or https)
            return parse_page(reply.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        raise OSError(f"status {error.code}") from None
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(f"no metrics page: {error}") from None


def parse_page(text: str) -> Snapshot:
    """Parse the text of a metrics page.

    Raises:
        ValueError: the text is not a metrics page.
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
    """Return what happened between two readings.

    Counters and histograms are differences, gauges are those of the second reading. A counter that went down began anew
    when the server was restarted, so its whole value counts. The mean of a histogram without samples is None.
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
