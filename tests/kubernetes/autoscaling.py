"""How many replicas an autoscaler asks for, by the arithmetic of Kubernetes and of KEDA.

Owns that arithmetic: tolerance, missing metrics, policies, stabilization, KEDA's fallback, and what the ScaledObject's
query makes of the figures of pods. Never the loop itself, which is the controller manager's, nor how a metric comes to
it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TOLERANCE = 0.1


@dataclass(frozen=True)
class Sample:
    """What one metric of an autoscaler has.

    Args:
        target: the average for each pod that is aimed at.
        by_pod: value of each pod that has one, for a metric of pods.
        total: for an external metric; None if there is no value.
    """

    target: float
    by_pod: Mapping[str, float] | None = None
    total: float | None = None


def total_saturation(known: Mapping[str, float], last: Mapping[str, float], pods: Collection[str]) -> list[float]:
    """Return the values that the ScaledObject's first query has, of which there is one or none.

    Args:
        known: saturation of each pod that has one now.
        last: the last one of each pod that ever had one, also of those in `known`.
        pods: those that are scraped, whatever comes of it.
    """
    return [sum(value for pod, value in last.items() if pod in pods)] if known else []


def proposal(current: int, sample: Sample, surge: int = 0) -> int | None:
    """Return how many replicas one metric asks for; None if it has no value.

    Args:
        current: replicas that are specified.
        sample: of the metric.
        surge: pods that there are beyond these, as during a rollout; external metrics are compared with all of them.
    """
    if sample.by_pod is not None:
        return _proposal_of_pods(current, sample.by_pod, sample.target)
    if sample.total is None:
        return None
    if abs(sample.total / (sample.target * (current + surge)) - 1) <= _TOLERANCE:
        return current + surge
    return math.ceil(sample.total / sample.target)


def _proposal_of_pods(current: int, by_pod: Mapping[str, float], target: float) -> int | None:
    if not by_pod:
        return None
    values = list(by_pod.values())
    missing = current - len(values)
    ratio = sum(values) / len(values) / target
    if missing <= 0:
        return current if abs(ratio - 1) <= _TOLERANCE else math.ceil(ratio * len(values))
    # Pods without a value are taken for idle before a step up, and for full before a step down.
    values += [0.0 if ratio > 1 else target] * missing
    careful = sum(values) / len(values) / target
    if abs(careful - 1) <= _TOLERANCE or (ratio < 1) != (careful < 1):
        return current
    return math.ceil(careful * len(values))


def combined(current: int, samples: Sequence[Sample], surge: int = 0) -> int:
    """Return how many replicas all metrics together ask for: the most, and no fewer while one has no value."""
    found = [proposal(current, sample, surge) for sample in samples]
    valid = [one for one in found if one is not None]
    if not valid or (len(valid) < len(found) and max(valid) < current):
        return current
    return max(valid)


@dataclass
class Autoscaler:
    """An autoscaler through time.

    Args:
        minimum, maximum: of replicas.
        behavior: of the specification.
        replicas: that there are.
    """

    minimum: int
    maximum: int
    behavior: Mapping[str, Any]
    replicas: int
    _asked: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def step(self, now: float, samples: Sequence[Sample], surge: int = 0) -> int:
        """Change the number of replicas as the metrics at a time ask for, and return it."""
        wanted = min(max(combined(self.replicas, samples, surge), self.minimum), self.maximum)
        self._asked.append((now, wanted))
        window_s = self.behavior["scaleDown"]["stabilizationWindowSeconds"]
        highest = max(count for at, count in self._asked if at > now - window_s)
        if wanted < self.replicas:
            wanted = min(self.replicas, highest)
        limits = [self._limit(now, wanted > self.replicas)]
        wanted = min(wanted, *limits) if wanted > self.replicas else max(wanted, *limits)
        wanted = min(max(wanted, self.minimum), self.maximum)
        if wanted != self.replicas:
            self._changes.append((now, wanted - self.replicas))
        self.replicas = wanted
        return wanted

    def _limit(self, now: float, is_up: bool) -> int:
        (policy,) = self.behavior["scaleUp" if is_up else "scaleDown"]["policies"]
        recent = [by for at, by in self._changes if at > now - policy["periodSeconds"]]
        if is_up:
            before = self.replicas - sum(by for by in recent if by > 0)
            assert policy["type"] == "Percent"
            return math.ceil(before * (1 + float(policy["value"]) / 100))
        before = self.replicas - sum(by for by in recent if by < 0)
        assert policy["type"] == "Pods"
        return before - int(policy["value"])


@dataclass
class KedaTrigger:
    """One trigger of a ScaledObject, as KEDA's operator turns its query's result into a metric.

    Args:
        trigger: of the specification.
        fallback: of the specification.
    """

    trigger: Mapping[str, Any]
    fallback: Mapping[str, Any]
    _num_failures: int = 0

    def sample(self, result: Sequence[float], replicas: int) -> Sample:
        """Return the metric for a query's result, which may be empty."""
        metadata = self.trigger["metadata"]
        target = float(metadata["threshold"])
        assert self.trigger["metricType"] == "AverageValue"  # before KEDA 2.18 the only one with a fallback
        if len(result) > 1:
            raise ValueError("KEDA takes a query with one value")
        if not result and metadata.get("ignoreNullValues", "true") == "true":
            result = [0.0]
        if result:
            self._num_failures = 0
            return Sample(target, total=result[0])
        self._num_failures += 1
        if self._num_failures <= self.fallback["failureThreshold"]:
            return Sample(target)
        assert self.fallback["behavior"] == "currentReplicasIfHigher"
        return Sample(target, total=target * max(replicas, self.fallback["replicas"]))
