"""Every bound of a request to the core, by field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.backend.doubles import SPEC
from trident_backend.engine.artifact import Generation
from trident_backend.requests import check_parameters, parse_request
from trident_backend.sequence import SamplingParams
from trident_ensemble.errors import RequestError

GREEDY = Generation(end_ids=(2, 3), temperature=0.0, top_k=0, top_p=1.0)
SAMPLING = Generation(end_ids=(2,), temperature=0.7, top_k=20, top_p=0.8)


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"input_ids": []}, "input_ids", "at least one"),
        ({"input_ids": [1] * 64}, "input_ids", "64"),
        ({"input_ids": [1, 97]}, "input_ids", "96"),
        ({"input_ids": [-1]}, "input_ids", "0"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": -5}, "max_tokens", "at least 1"),
        ({"max_tokens": 62}, "max_tokens", "at most 61"),
        ({"temperature": -0.1}, "temperature", "0"),
        ({"temperature": float("nan")}, "temperature", "0"),
        ({"temperature": float("inf")}, "temperature", "0"),
        ({"top_k": -1}, "top_k", "0"),
        ({"top_p": 0.0}, "top_p", "above 0"),
        ({"top_p": 1.1}, "top_p", "at most 1"),
        ({"top_p": float("nan")}, "top_p", "above 0"),
        ({"end_id": 97}, "end_id", "96"),
        ({"end_id": -2}, "end_id", "-1"),
    ],
)
def test_a_bad_field_is_named_with_its_limit(fields: dict[str, Any], field: str, limit: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(1, {"input_ids": [1, 2, 3], "max_tokens": 4} | fields, SPEC, GREEDY)
    assert caught.value.field == field
    assert limit in str(caught.value)


def test_the_longest_request_is_taken() -> None:
    assert parse_request(1, {"input_ids": [1] * 63, "max_tokens": 1}, SPEC, GREEDY).max_len == SPEC.max_seq_len


def test_the_checkpoints_defaults_hold_until_the_request_says_otherwise() -> None:
    fields = {"input_ids": [1], "max_tokens": 1, "seed": 7}
    assert parse_request(1, fields, SPEC, SAMPLING).sampling == SamplingParams(0.7, 20, 0.8, 7)
    changed = parse_request(1, fields | {"temperature": 0.0, "top_p": 1.0}, SPEC, SAMPLING).sampling
    assert changed == SamplingParams(0.0, 20, 1.0, 7)


def test_asking_for_top_p_of_a_greedy_checkpoint_samples() -> None:
    fields = {"input_ids": [1], "max_tokens": 1, "top_p": 0.9}
    assert parse_request(1, fields, SPEC, GREEDY).sampling.temperature == 1.0


def test_end_ids_are_a_set_that_a_request_may_widen_or_ignore() -> None:
    fields = {"input_ids": [1], "max_tokens": 1}
    assert parse_request(1, fields | {"end_id": 9}, SPEC, GREEDY).end_ids == {2, 3, 9}
    assert parse_request(1, fields | {"ignore_eos": True}, SPEC, GREEDY).end_ids == frozenset()


def test_seeds_are_drawn_when_unset() -> None:
    fields = {"input_ids": [1], "max_tokens": 1}
    assert len({parse_request(1, fields, SPEC, GREEDY).sampling.seed for _ in range(8)}) == 8


def test_an_unknown_parameter_is_named() -> None:
    check_parameters({"id": "x", "timeout": 3})
    with pytest.raises(RequestError, match="max_tokns"):
        check_parameters({"max_tokns": 3})
