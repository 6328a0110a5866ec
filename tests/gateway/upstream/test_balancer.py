"""Which server takes a call: the less busy of two, and the same one for equal beginnings, within bounds."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from trident_gateway.upstream.balancer import AFFINITY_FACTOR, Candidate, pick
from trident_gateway.upstream.metrics_page import CoreFigures

FIGURES = st.none() | st.builds(
    CoreFigures, st.integers(0, 300).map(float), st.integers(0, 300).map(float), st.floats(0, 1)
)
FLEETS = st.lists(st.tuples(st.integers(0, 300), FIGURES), min_size=1, max_size=6).map(
    lambda states: [Candidate(f"s{index}", *state) for index, state in enumerate(states)]
)


@settings(deadline=None, max_examples=50)
@given(FLEETS, st.binary(max_size=4), st.integers(0, 2**32))
def test_pick_is_never_the_busiest_of_all_but_for_affinity(fleet: list[Candidate], affinity: bytes, seed: int) -> None:
    draw = Random(seed)  # noqa: S311
    choice = pick(fleet, affinity, draw)
    loads = {candidate.name: candidate.load for candidate in fleet}
    if len(fleet) == 1:
        assert choice.reason == "only"
    elif choice.reason == "load":
        busiest = max(loads.values())
        assert loads[choice.name] < busiest or list(loads.values()).count(busiest) > 1
    else:
        assert affinity
        assert loads[choice.name] <= AFFINITY_FACTOR * max(loads.values()) + 1


@settings(deadline=None, max_examples=50)
@given(FLEETS, st.binary(min_size=1, max_size=8), st.data())
def test_pick_of_an_affinity_outlives_other_servers(
    fleet: list[Candidate], affinity: bytes, data: st.DataObject
) -> None:
    idle = [Candidate(candidate.name, 0) for candidate in fleet]
    chosen = pick(idle, affinity, Random(0)).name  # noqa: S311
    kept = [candidate for candidate in idle if candidate.name == chosen or data.draw(st.booleans())]
    assert pick(kept, affinity, Random(1)).name == chosen  # noqa: S311


def test_pick_spreads_affinities_evenly() -> None:
    idle = [Candidate(f"10.0.0.{index}:8000", 0) for index in range(4)]
    draw = Random(0)  # noqa: S311
    counts = Counter(pick(idle, b"%d" % index, draw).name for index in range(4000))
    assert all(850 < count < 1150 for count in counts.values())


def test_pick_leaves_an_affinity_at_one_and_a_half_times_the_load() -> None:
    draw = Random(0)  # noqa: S311
    preferred = pick([Candidate("a", 0), Candidate("b", 0)], b"prefix", draw).name
    other = "b" if preferred == "a" else "a"
    assert pick([Candidate(preferred, 16), Candidate(other, 10)], b"prefix", draw).name == preferred
    assert pick([Candidate(preferred, 17), Candidate(other, 10)], b"prefix", draw).name == other


def test_load_is_what_waits_what_runs_and_how_full_the_cache_is() -> None:
    def load(active: float, waiting: float, fraction: float, in_flight: int = 0) -> float:
        return Candidate("a", in_flight, CoreFigures(active, waiting, fraction)).load

    assert load(4, 0, 0.0) < load(4, 2, 0.0) < load(4, 2, 0.5)
    assert load(0, 0, 0.0, in_flight=3) == 3  # what is newer than the figures
    assert load(9, 0, 0.0, in_flight=3) == 9  # what other gateways have sent
    assert Candidate("a", 3).load == 3


def _simulate(service_s: list[float], *, has_figures: bool, rate: float, seed: int) -> Counter[str]:
    """Serve calls of 0.5 s and more with servers that compute one thing at a time; figures are up to a second old."""
    draw = Random(seed)  # noqa: S311
    free_at, ends, served, figures_at = [0.0] * len(service_s), [[0.0] for _ in service_s], Counter[str](), -1.0
    figures: list[CoreFigures | None] = [None] * len(service_s)
    now = 0.0
    for _ in range(3000):
        now += draw.expovariate(rate)
        in_flight = [sum(end > now for end in own[-200:]) for own in ends]
        if has_figures and now - figures_at >= 1:
            figures_at = now
            figures = [CoreFigures(count, max(0, count - 1), 0.0) for count in in_flight]
        fleet = [Candidate(f"s{index}", in_flight[index], figures[index]) for index in range(len(service_s))]
        index = int(pick(fleet, b"", draw).name[1:])
        served[f"s{index}"] += 1
        free_at[index] = max(free_at[index], now) + draw.expovariate(1 / service_s[index])
        ends[index].append(free_at[index])
    return served


def test_pick_sends_less_to_a_slow_server_with_figures_and_without() -> None:
    for has_figures in (True, False):
        served = _simulate([0.1, 0.2], has_figures=has_figures, rate=12.0, seed=3)
        assert 0.25 < served["s1"] / served.total() < 0.40, has_figures


def _affine_share(*, factor: float, seed: int) -> float:
    """Return the share of equal prefixes that the server of their choice gets, while others keep both busy.

    Its load is so many times the other's at the most, and figures are up to a second old.
    """
    draw = Random(seed)  # noqa: S311
    preferred = pick([Candidate("s0", 0), Candidate("s1", 0)], b"prefix", draw).name
    other = "s1" if preferred == "s0" else "s0"
    chosen = Counter[str]()
    for _ in range(2000):
        base = draw.randint(0, 60)
        loads = {other: base, preferred: draw.randint(0, int(base * factor))}
        fleet = [
            Candidate(name, load, None if draw.random() < 0.5 else CoreFigures(load, 0, 0.0))
            for name, load in sorted(loads.items())
        ]
        chosen[pick(fleet, b"prefix", draw).name] += 1
    return chosen[preferred] / chosen.total()


def test_pick_keeps_equal_prefixes_together_until_one_and_a_half_times_the_load() -> None:
    assert _affine_share(factor=AFFINITY_FACTOR, seed=5) >= 0.9
    assert _affine_share(factor=20.0, seed=6) < 0.5


def test_pick_is_even_among_equals() -> None:
    served = _simulate([0.1] * 4, has_figures=True, rate=32.0, seed=4)
    assert all(0.2 < count / served.total() < 0.3 for count in served.values())
