"""Every bound of a request to the core, by field."""

from __future__ import annotations

import math
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
        ({"timeout_ms": 0}, "timeout_ms", "at least 1"),
        ({"timeout_ms": -3}, "timeout_ms", "at least 1"),
        ({"priority": 101}, "priority", "-100 to 100"),
        ({"priority": -101}, "priority", "-100 to 100"),
        ({"tenant": b"t" * 257}, "tenant", "at most 256"),
        ({"tenant": b"\xff"}, "tenant", "UTF-8"),
        ({"cache_salt": b"s" * 257}, "cache_salt", "at most 256"),
        ({"cache_salt": b"a\xc3"}, "cache_salt", "at byte 1"),
    ],
)
def test_a_bad_field_is_named_with_its_limit(fields: dict[str, Any], field: str, limit: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(1, {"input_ids": [1, 2, 3], "max_tokens": 4} | fields, SPEC, GREEDY, 0.0)
    assert caught.value.field == field
    assert limit in str(caught.value)


def test_the_longest_request_is_taken() -> None:
    assert parse_request(1, {"input_ids": [1] * 63, "max_tokens": 1}, SPEC, GREEDY, 0.0).max_len == SPEC.max_seq_len


def test_the_checkpoints_defaults_hold_until_the_request_says_otherwise() -> None:
    fields = {"input_ids": [1], "max_tokens": 1, "seed": 7}
    assert parse_request(1, fields, SPEC, SAMPLING, 0.0).sampling == SamplingParams(0.7, 20, 0.8, seed=7)
    changed = parse_request(1, fields | {"temperature": 0.0, "top_p": 1.0}, SPEC, SAMPLING, 0.0).sampling
    assert changed == SamplingParams(0.0, 20, 1.0, seed=7)


def test_asking_for_top_p_of_a_greedy_checkpoint_samples() -> None:
    fields = {"input_ids": [1], "max_tokens": 1, "top_p": 0.9}
    assert parse_request(1, fields, SPEC, GREEDY, 0.0).sampling.temperature == 1.0


def test_end_ids_are_a_set_that_a_request_may_widen_or_ignore() -> None:
    fields = {"input_ids": [1], "max_tokens": 1}
    assert parse_request(1, fields | {"end_id": 9}, SPEC, GREEDY, 0.0).end_ids == {2, 3, 9}
    assert parse_request(1, fields | {"ignore_eos": True}, SPEC, GREEDY, 0.0).end_ids == frozenset()


def test_what_scheduling_goes_by_is_carried_over() -> None:
    fields = {"input_ids": [1], "max_tokens": 1}
    plain = parse_request(1, fields, SPEC, GREEDY, 5.0)
    assert (plain.arrived_at, plain.deadline, plain.priority, plain.tenant) == (5.0, math.inf, 0, "")
    assert (plain.cache_salt, plain.reuse_cache) == ("", True)
    fields |= {"timeout_ms": 250, "priority": -100, "tenant": "Zoë".encode(), "cache_salt": b"pepper"}
    rich = parse_request(1, fields | {"reuse_cache": False}, SPEC, GREEDY, 5.0)
    assert (rich.arrived_at, rich.deadline, rich.priority, rich.tenant) == (5.0, 5.25, -100, "Zoë")
    assert (rich.cache_salt, rich.reuse_cache) == ("pepper", False)


def test_seeds_are_drawn_when_unset() -> None:
    fields = {"input_ids": [1], "max_tokens": 1}
    assert len({parse_request(1, fields, SPEC, GREEDY, 0.0).sampling.seed for _ in range(8)}) == 8


def test_an_unknown_parameter_is_named() -> None:
    check_parameters({"id": "x", "timeout": 3})
    with pytest.raises(RequestError, match="max_tokns"):
        check_parameters({"max_tokns": 3})
