"""The limits that a release must hold, against arithmetic done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.release.figures import Quality
from tests.release.gates import SPEED, agreement, check_quality, check_speed

ANSWERS = [[1, 2, 3, 4], [5, 6, 7, 8]]
BEFORE = {"demo fp32": Quality(100.0, 50, ANSWERS), "demo int8": Quality(100.0, 50, ANSWERS)}
LIKE_BEFORE = dict.fromkeys(SPEED, 10.0)


@pytest.mark.parametrize(
    ("name", "perplexity", "has_passed"),
    [
        ("demo fp32", 100.0, True),
        ("demo fp32", 99.0, True),
        ("demo fp32", 100.2, False),
        ("demo int8", 100.2, True),
        ("demo int8", 100.6, False),
    ],
)
def test_gate_of_perplexity_is_as_wide_as_rounding_asks(name: str, perplexity: float, has_passed: bool) -> None:
    verdicts = check_quality({name: Quality(perplexity, 50, ANSWERS)}, {name: BEFORE[name]})
    assert {verdict.what: verdict.has_passed for verdict in verdicts} == {
        f"{name}: perplexity": has_passed,
        f"{name}: greedy agreement": True,
    }


def test_gate_of_answers_fails_where_they_go_another_way() -> None:
    other = Quality(100.0, 50, [[1, 2, 3, 4], [5, 9, 7, 8]])
    (_, verdict) = check_quality({"demo fp32": other}, {"demo fp32": BEFORE["demo fp32"]})
    assert (verdict.has_passed, verdict.found) == (False, "0.6250")


def test_gate_refuses_to_compare_another_text() -> None:
    (verdict,) = check_quality({"demo fp32": Quality(100.0, 49, ANSWERS)}, {"demo fp32": BEFORE["demo fp32"]})
    assert not verdict.has_passed


def test_gate_says_what_is_new_and_what_was_not_measured() -> None:
    verdicts = check_quality({"other fp32": Quality(100.0, 50, ANSWERS)}, {"demo fp32": BEFORE["demo fp32"]})
    assert [(verdict.what, verdict.limit, verdict.has_passed) for verdict in verdicts] == [
        ("other fp32: quality", "new", True),
        ("demo fp32: quality", "-", True),
    ]


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5), st.data())
def test_agreement_is_what_comes_again_before_the_first_other_token(
    reference: list[list[int]], data: st.DataObject
) -> None:
    answers = [[*data.draw(st.lists(st.integers(0, 2), max_size=6))] for _ in reference]
    num_same = 0
    for answer, before in zip(answers, reference, strict=True):
        for index in range(len(before)):
            if answer[: index + 1] != before[: index + 1]:
                break
            num_same += 1
    assert agreement(answers, reference) == pytest.approx(num_same / max(1, sum(map(len, reference))))
    assert agreement(reference, reference) == (1.0 if any(reference) else 0.0)


@pytest.mark.parametrize(
    ("what", "value", "has_passed"),
    [
        ("output tokens/s", 9.6, True),
        ("output tokens/s", 9.4, False),
        ("output tokens/s", 30.0, True),
        ("time to first token p50", 10.9, True),
        ("time to first token p50", 11.2, False),
        ("time between responses p95", 11.6, False),
    ],
)
def test_gate_of_speed_knows_which_way_is_worse(what: str, value: float, has_passed: bool) -> None:
    # One round that went wrong for another reason decides nothing.
    rounds = [(LIKE_BEFORE | {what: value}, LIKE_BEFORE)] * 3 + [(LIKE_BEFORE, LIKE_BEFORE | {what: 1000.0})]
    verdicts = {verdict.what: verdict.has_passed for verdict in check_speed("demo", rounds, 0.0)}
    assert verdicts.pop(f"demo: {what}") == has_passed
    assert all(verdicts.values())
    widened = check_speed("demo", rounds, 0.5)
    assert all(verdict.has_passed for verdict in widened)
