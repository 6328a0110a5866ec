"""What a benchmark's JSON tells a simulation about the server it ran on.

Owns the reading of that file; nobody else here knows its form. The last stage in which the server's metrics were read
counts: by then the server had learned the most of its steps.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trident_backend.sequences.step_time import StepTime
from trident_ensemble.contract.errors import ConfigError
from trident_tools.simulation.step_cost import make_step_time


@dataclass(frozen=True)
class BenchedServer:
    """A server as a benchmark saw it; None is what the file does not say.

    Args:
        step_time: what its steps cost.
        overhead: seconds of a request outside its core: by how much clients waited longer for their first token, on
            average, than the core took.
        max_num_seqs: sequences in one step.
        block_size: tokens of a KV block.
        kv_tokens: that its KV cache holds.
    """

    step_time: StepTime
    overhead: float
    max_num_seqs: int | None
    block_size: int | None
    kv_tokens: int | None


def read_bench(path: Path) -> BenchedServer:
    """Understand what `trident bench --json` wrote.

    Raises:
        ConfigError: it cannot be read, or the server's metrics are not in it.
    """
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
        read = [stage for stage in stages if stage["server"] is not None]
        if not read:
            raise ConfigError(
                f"--from-bench: {path}: the server's metrics are not in it; let `trident bench` read them "
                "(--metrics-url)"
            )
        overhead = min(_overhead(stage) for stage in read)
        return replace(_understand(read[-1], path), overhead=0.0 if overhead == math.inf else overhead)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"--from-bench: {path} is nothing that `trident bench --json` wrote: {error!r}") from None


def _understand(stage: Mapping[str, Any], path: Path) -> BenchedServer:
    gauges = stage["server"]["gauges"]
    coefficients = {
        name: value
        for coefficient in fields(StepTime)
        if (value := _series(gauges, "nv_llm_step_time_model", coefficient=(name := coefficient.name))) is not None
    }
    if len(coefficients) < len(fields(StepTime)) or not any(coefficients.values()):
        raise ConfigError(
            f"--from-bench: {path}: the server had not learned what its steps take (nv_llm_step_time_model); "
            "bench for longer, or give --step-time"
        )
    blocks = _series(gauges, "nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="max")
    block_size = _series(gauges, "nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="tokens_per")
    max_num_seqs = _series(gauges, "nv_trt_llm_request_metrics", request_type="max")
    return BenchedServer(
        step_time=make_step_time(coefficients, f"--from-bench: {path}"),
        overhead=0.0,
        max_num_seqs=int(max_num_seqs) if max_num_seqs else None,
        block_size=int(block_size) if block_size else None,
        kv_tokens=int(blocks * block_size) if blocks and block_size else None,
    )


def _overhead(stage: Mapping[str, Any]) -> float:
    """By how much clients waited longer than the core took.

    Under growing queues the two do not speak of the same requests, and the difference is mostly queueing; so the
    smallest of all stages is the one to believe.
    """
    served = _series(stage["server"]["histograms"], "nv_llm_time_to_first_token_seconds")
    waited = stage["metrics"].get("time_to_first_token")
    if not waited or not served or served["mean"] is None:
        return math.inf
    return max(0.0, float(waited["avg"]) / 1000 - float(served["mean"]))


def _series(metrics: Mapping[str, Any], family: str, **labels: str) -> Any:
    """The first series of a family with these labels; None if there is none."""
    for series, value in metrics.items():
        name, _, rest = series.partition("{")
        if name == family and labels.items() <= dict(_LABEL.findall(rest)).items():
            return value
    return None


_LABEL = re.compile(r'(\w+)="([^"]*)"')
