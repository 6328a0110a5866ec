"""What a release may not be worse in than the last one.

Owns the limits, and the comparison. Pure: it is given figures and never measures any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median

from tests.release.figures import Quality

#: How much larger the perplexity may be, by whether weights are rounded: rounding moves with the smallest change.
MOST_PERPLEXITY = {"fp32": 1.001, "int8": 1.005}
#: What share of the last release's greedy tokens must come again before an answer goes another way. Processors add in
#: different orders, so that near ties fall otherwise.
LEAST_AGREEMENT = 0.95


@dataclass(frozen=True)
class Limit:
    """The bound of a ratio of two states' speeds, this one's over the last release's.

    Args:
        bound: the ratio that is just allowed.
        is_least: a smaller ratio is worse; otherwise a larger one.
    """

    bound: float
    is_least: bool

    def holds(self, ratio: float) -> bool:
        """Return whether a ratio is allowed."""
        return ratio >= self.bound if self.is_least else ratio <= self.bound


#: By the names of the figures of speed. A machine is noisy, so these are medians of rounds that were taken in turn.
SPEED = {
    "output tokens/s": Limit(0.95, is_least=True),
    "time to first token p50": Limit(1.10, is_least=False),
    "time to first token p95": Limit(1.15, is_least=False),
    "time between responses p95": Limit(1.15, is_least=False),
}


@dataclass(frozen=True)
class Verdict:
    """The outcome of one gate.

    Args:
        what: was compared.
        found: the value, as the page shows it.
        limit: likewise.
        has_passed: whether the release may go out, as far as this gate is concerned.
    """

    what: str
    found: str
    limit: str
    has_passed: bool


def agreement(answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Return what share of the reference's tokens comes again, up to the first other one of each answer."""
    pairs = list(zip(answers, reference, strict=True))
    same = sum(len(list(takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False)))) for pair in pairs)
    return same / max(1, sum(len(answer) for answer in reference))


def check_quality(found: Mapping[str, Quality], reference: Mapping[str, Quality]) -> list[Verdict]:
    """Compare each engine's quality with that of the last release's engine; one that has none passes."""
    verdicts = []
    for name, quality in found.items():
        before = reference.get(name)
        if before is None:
            verdicts.append(Verdict(f"{name}: quality", f"perplexity {quality.perplexity:.4f}", "new", has_passed=True))
            continue
        if (before.num_tokens, len(before.answers)) != (quality.num_tokens, len(quality.answers)):
            verdicts.append(
                Verdict(f"{name}: text", f"{quality.num_tokens} tokens", f"{before.num_tokens}", has_passed=False)
            )
            continue
        ratio, most = quality.perplexity / before.perplexity, MOST_PERPLEXITY[name.rsplit(" ", 1)[1]]
        share = agreement(quality.answers, before.answers)
        verdicts += [
            Verdict(
                f"{name}: perplexity",
                f"{quality.perplexity:.4f}, {ratio:.5f} of the last",
                f"at most {most:g}",
                has_passed=ratio <= most,
            ),
            Verdict(
                f"{name}: greedy agreement",
                f"{share:.4f}",
                f"at least {LEAST_AGREEMENT:g}",
                has_passed=share >= LEAST_AGREEMENT,
            ),
        ]
    missing = reference.keys() - found.keys()
    return verdicts + [Verdict(f"{name}: quality", "not measured", "-", has_passed=True) for name in sorted(missing)]


def check_speed(
    name: str, rounds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], slack: float
) -> list[Verdict]:
    """Compare the speed of two states.

    Args:
        name: of what was measured.
        rounds: the figures of this state and those of the last release, which were taken in turn.
        slack: widens every limit by this share, for few and short rounds.
    """
    verdicts = []
    for what, limit in SPEED.items():
        ratios = [this[what] / last[what] for this, last in rounds]
        bound = limit.bound / (1 + slack) if limit.is_least else limit.bound * (1 + slack)
        ratio = median(ratios)
        verdicts.append(
            Verdict(
                f"{name}: {what}",
                f"{ratio:.3f} of the last (rounds {min(ratios):.3f} to {max(ratios):.3f})",
                f"{'at least' if limit.is_least else 'at most'} {bound:.3g}",
                has_passed=Limit(bound, limit.is_least).holds(ratio),
            )
        )
    return verdicts
