"""A benchmark's JSON, and what it tells a simulation about the server.

Owns the reading of that file, whose form no other module here knows. The last stage in which the server's metrics were
read counts, because by then the server had learned the most about its steps. Never runs a benchmark.
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
from trident_ensemble.contract.layout import ModelNames
from trident_tools.simulation.step_cost import make_step_time


@dataclass(frozen=True)
class BenchedServer:
    """A server as a benchmark saw it; a field is None where the file does not say.

    Args:
        step_time: the cost of its steps.
        overhead: seconds of a request outside the core: how much longer clients waited for their first token, on
            average, than the core took.
        max_num_seqs: sequences in one step.
        block_size: tokens in a KV block.
        kv_tokens: tokens that the KV cache holds.
    """

    step_time: StepTime
    overhead: float
    max_num_seqs: int | None
    block_size: int | None
    kv_tokens: int | None


def read_bench(path: Path) -> BenchedServer:
    """Read a file that `trident bench --json` wrote.

    Raises:
        ConfigError: the file cannot be read, or does not have the server's metrics.
    """
    try:
        benched = json.loads(path.read_text(encoding="utf-8"))
        read = [_of_model(stage, benched["model"]) for stage in benched["stages"] if stage["server"] is not None]
        if not read:
            raise ConfigError(
                f"--from-bench: {path}: the server's metrics are not in it; let `trident bench` read them "
                "(--metrics-url)"
            )
        overhead = min(_overhead(stage) for stage in read)
        return replace(_understand(read[-1], path), overhead=0.0 if overhead == math.inf else overhead)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"--from-bench: {path} was not written by `trident bench --json`: {error!r}") from None


def _of_model(stage: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """Return a stage without the series of other models, which one server may have as well.

    A model that was asked by another name than its repository's, as through a gateway, is not found so; then all stay.
    """
    try:
        mine = f'model="{ModelNames(model).core}"'
    except ConfigError:
        return stage
    kinds = stage["server"].items()
    if not any(mine in series for _, kind in kinds for series in kind):
        return stage
    return {**stage, "server": {key: {name: kind[name] for name in kind if mine in name} for key, kind in kinds}}


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
    """Return how many seconds longer clients waited than the core took.

    With growing queues the two figures are not of the same requests, and the difference is mostly queueing, so the
    smallest of all stages is the most reliable.
    """
    served = _series(stage["server"]["histograms"], "nv_llm_time_to_first_token_seconds")
    waited = stage["metrics"].get("time_to_first_token")
    if not waited or not served or served["mean"] is None:
        return math.inf
    return max(0.0, float(waited["avg"]) / 1000 - float(served["mean"]))


def _series(metrics: Mapping[str, Any], family: str, **labels: str) -> Any:
    """Return the first series of a family with these labels; None if there is none."""
    for series, value in metrics.items():
        name, _, rest = series.partition("{")
        if name == family and labels.items() <= dict(_LABEL.findall(rest)).items():
            return value
    return None


_LABEL = re.compile(r'(\w+)="([^"]*)"')
