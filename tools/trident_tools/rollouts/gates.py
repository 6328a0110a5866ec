"""The gates of a stage: whether the canary is as good as the stable side.

Owns the limits, and when one is broken. A gate that is broken is so beyond chance and beyond the width of a histogram's
buckets; one whose limit is passed by less than that is unclear, and the window goes on. Chance is that of both sides,
and of all looks at a growing window together. Never knows a time or a weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from trident_tools.rollouts.figures import Histogram, SideFigures

#: Standard errors beyond a limit from which a gate is broken. A window is judged each second, and chance reaches three
#: of them in some second of many a window; four in hardly any.
_SIGMAS = 4.0
#: The same as the logarithm of a ratio of likelihoods.
_EVIDENCE = _SIGMAS**2 / 2
_NUM_HALVINGS = 50
_QUANTILE = 0.95
#: Streams below which a spread is not known well enough to call a ratio broken.
_MIN_STREAMS = 50


class Outcome(str, Enum):
    """The states of a gate."""

    MET = "met"
    #: The limit is passed, but chance could have done that.
    UNCLEAR = "unclear"
    BROKEN = "broken"


@dataclass(frozen=True)
class Verdict:
    """The finding at one gate.

    Args:
        gate: its name, which is the reason when a rollout is undone by it.
        outcome: the finding.
        text: the numbers of it.
    """

    gate: str
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class GateLimits:
    """The limits of the gates. Points are hundredths.

    Args:
        error_points: by how much the share of failed requests may be above that of the stable side.
        refusal_points: the same of requests that are refused as wrong.
        gone_points: the same of clients that leave before their answer begins.
        ttft_ratio: how many times the stable side's the 95th percentile of the time to the first part may be.
        itl_ratio: the same of the time between two parts.
        length_points: by how much the share of answers that end by their length may differ, either way.
    """

    error_points: float = 0.5
    refusal_points: float = 5.0
    gone_points: float = 5.0
    ttft_ratio: float = 1.25
    itl_ratio: float = 1.15
    length_points: float = 10.0


def judge(canary: SideFigures, stable: SideFigures, limits: GateLimits) -> tuple[Verdict, ...]:
    """Return what is found at every gate that compares the sides."""
    num_streams = min(canary.ttft.count, stable.ttft.count)
    return (
        _more_often("errors", (canary.errors, canary.requests), (stable.errors, stable.requests), limits.error_points),
        _more_often(
            "refusals", (canary.refusals, canary.requests), (stable.refusals, stable.requests), limits.refusal_points
        ),
        _more_often(
            "gone",
            (canary.gone, canary.gone + canary.requests),
            (stable.gone, stable.gone + stable.requests),
            limits.gone_points,
        ),
        _slower("ttft", canary.ttft, stable.ttft, limits.ttft_ratio, num_streams),
        _slower("itl", canary.itl, stable.itl, limits.itl_ratio, num_streams),
        _otherwise(
            "finish", (canary.lengths, canary.finishes), (stable.lengths, stable.finishes), limits.length_points
        ),
    )


def judge_servers(canary: SideFigures) -> Verdict:
    """Return whether all servers of the canary have stayed up, for which there is no limit but 0."""
    outcome = Outcome.BROKEN if canary.ejections else Outcome.MET
    return Verdict("ejections", outcome, f"{canary.ejections:g} of the canary's servers lost or started anew")


def _more_often(gate: str, canary: tuple[float, float], stable: tuple[float, float], points: float) -> Verdict:
    """Judge a share that may be larger than the stable side's by some points."""
    share, base = _share(canary), _share(stable)
    text = f"{share:.2%} against {base:.2%}, at most {points:g} points more"
    if share <= base + points / 100:
        return Verdict(gate, Outcome.MET, text)
    is_broken = _evidence(canary, stable, points / 100) > _EVIDENCE
    return Verdict(gate, Outcome.BROKEN if is_broken else Outcome.UNCLEAR, text)


def _otherwise(gate: str, canary: tuple[float, float], stable: tuple[float, float], points: float) -> Verdict:
    """Judge a share that may differ from the stable side's by some points, either way."""
    text = f"{_share(canary):.1%} end by length against {_share(stable):.1%}, at most {points:g} points apart"
    if not canary[1] or not stable[1]:
        return Verdict(gate, Outcome.MET, "no answers to compare")
    more = _more_often(gate, canary, stable, points)
    fewer = _more_often(gate, _rest(canary), _rest(stable), points)
    return Verdict(gate, max((more.outcome, fewer.outcome), key=tuple(Outcome).index), text)


def _slower(gate: str, canary: Histogram, stable: Histogram, ratio: float, num_streams: float) -> Verdict:
    """Judge the 95th percentile of a time.

    Buckets say between which bounds a percentile lies. Where these alone show on which side of the limit the canary is,
    they decide. Where the limit falls within their width, the means decide, which are exact.
    """
    if not canary.count or not stable.count:
        return Verdict(gate, Outcome.MET, "no streams to compare")
    here, there = canary.quantile(_QUANTILE), stable.quantile(_QUANTILE)
    means = canary.mean / stable.mean if stable.mean else math.inf if canary.mean else 1.0
    text = f"p95 {here:.4g} s against {there:.4g} s, mean {means:.2f} times, at most {ratio:g} times"
    (_, upper), (stable_lower, stable_upper) = canary.quantile_edges(_QUANTILE), stable.quantile_edges(_QUANTILE)
    if upper <= ratio * stable_lower:
        return Verdict(gate, Outcome.MET, text)
    # The smallest bound that is surely beyond the limit: more than 5 % above it is a percentile beyond it.
    surely = min((bound for bound in canary.counts if bound >= ratio * stable_upper), default=math.inf)
    slow = canary.above(surely)
    is_tail_beyond = slow > (1 - _QUANTILE) * canary.count
    if not is_tail_beyond and means <= ratio:
        return Verdict(gate, Outcome.MET, text)
    if num_streams < _MIN_STREAMS:
        return Verdict(gate, Outcome.UNCLEAR, text)
    # Times within one stream resemble each other, so what counts as independent is the streams.
    weight = min(1.0, num_streams / canary.count)
    is_tail_broken = is_tail_beyond and weight * _evidence_alone(slow, canary.count, 1 - _QUANTILE) > _EVIDENCE
    is_mean_broken = means > ratio and math.log(means / ratio) > _SIGMAS * _spread(canary, stable, num_streams)
    return Verdict(gate, Outcome.BROKEN if is_tail_broken or is_mean_broken else Outcome.UNCLEAR, text)


def _spread(canary: Histogram, stable: Histogram, num_streams: float) -> float:
    """Return the standard error of the logarithm of the means' ratio."""
    return math.sqrt(
        sum(one.variance / one.mean**2 / min(one.count, num_streams) for one in (canary, stable) if one.mean)
    )


def _share(counted: tuple[float, float]) -> float:
    # Streams that broke are counted by model, requests by route as well.
    return min(1.0, counted[0] / counted[1]) if counted[1] else 0.0


def _rest(counted: tuple[float, float]) -> tuple[float, float]:
    return counted[1] - counted[0], counted[1]


def _evidence(canary: tuple[float, float], stable: tuple[float, float], margin: float) -> float:
    """Return how much the counts speak for a canary beyond the limit.

    It is the logarithm of a ratio: how likely the counts are with the shares that were found, and with the likeliest
    two of which the canary's is no more than `margin` above the other. So a stable side of few requests proves little.
    """
    base, share = _share(stable), _share(canary)
    # The likeliest base lies between that of the stable side and that which the canary's share asks for.
    lower, upper = base, share - margin
    for _ in range(_NUM_HALVINGS):
        middle = (lower + upper) / 2
        if _slope(canary, middle + margin) + _slope(stable, middle) > 0:
            lower = middle
        else:
            upper = middle
    found = _log_likelihood(canary, share) + _log_likelihood(stable, base)
    return found - _log_likelihood(canary, lower + margin) - _log_likelihood(stable, lower)


def _evidence_alone(found: float, number: float, share: float) -> float:
    """Return how much a count speaks for more than a known share."""
    counted = (found, number)
    return _log_likelihood(counted, found / number) - _log_likelihood(counted, share)


def _log_likelihood(counted: tuple[float, float], share: float) -> float:
    """Return the logarithm of the chance of a count, but for its binomial coefficient."""
    found, others = counted[0], counted[1] - counted[0]
    return (found * math.log(share) if found else 0.0) + (others * math.log1p(-share) if others > 0 else 0.0)


def _slope(counted: tuple[float, float], share: float) -> float:
    """Return the derivative of that by the share."""
    found, others = counted[0], counted[1] - counted[0]
    return (found / share if found else 0.0) - (others / (1 - share) if others > 0 else 0.0)
