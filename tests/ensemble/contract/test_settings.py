"""The parameters of the models: every field there and back, every bad value refused by its key."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.settings import (
    BatchSchedulerPolicy,
    CoreSettings,
    TextSettings,
    UnarySettings,
    check_limits,
    parse_parameters,
    render_parameters,
)

OTHER: dict[str, Any] = {
    "batch_scheduler_policy": BatchSchedulerPolicy.MAX_UTILIZATION,
    "token_budget": 512,
    "target_itl_ms": 40,
    "enable_kv_cache_reuse": False,
    "default_max_tokens": 99,
    "max_draft_tokens": 5,
    "max_queue_size": 7,
    "max_queue_tokens": 9000,
    "priority_aging_ms": 250,
    "tenant_weights": (("gold", 3.0), ("bronze", 0.5)),
    "stream_interval_ms": 70,
    "pause_after_ms": 100,
    "abandon_after_ms": 500,
    "guided_memory_mb": 256,
    "metrics_period_ms": 50,
    "gpu": (2, 0),
}

COUNTS = ["token_budget", "target_itl_ms", "max_draft_tokens"]
POSITIVES = [
    "default_max_tokens",
    "max_queue_size",
    "max_queue_tokens",
    "priority_aging_ms",
    "pause_after_ms",
    "abandon_after_ms",
]


def _wrapped(parameters: dict[str, str]) -> dict[str, dict[str, str]]:
    """As Triton hands them over."""
    return {key: {"string_value": value} for key, value in parameters.items()}


def test_settings_this_file_knows_every_field() -> None:
    assert list(OTHER) == [known.name for known in fields(CoreSettings)]
    assert all(value != getattr(CoreSettings(), name) for name, value in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
def test_settings_each_field_goes_there_and_back(name: str) -> None:
    changed = replace(CoreSettings(), **{name: OTHER[name]})
    rendered = render_parameters(changed)
    assert parse_parameters(CoreSettings, _wrapped(rendered)) == changed
    assert parse_parameters(CoreSettings, {name: rendered[name]}) == changed, "also bare, and alone"
    assert parse_parameters(CoreSettings, {}) == CoreSettings()


def test_settings_what_is_rendered_is_what_people_write() -> None:
    assert render_parameters(CoreSettings(**OTHER)) == {
        "batch_scheduler_policy": "max_utilization",
        "token_budget": "512",
        "target_itl_ms": "40",
        "enable_kv_cache_reuse": "false",
        "default_max_tokens": "99",
        "max_draft_tokens": "5",
        "max_queue_size": "7",
        "max_queue_tokens": "9000",
        "priority_aging_ms": "250",
        "tenant_weights": "gold=3,bronze=0.5",
        "stream_interval_ms": "70",
        "pause_after_ms": "100",
        "abandon_after_ms": "500",
        "guided_memory_mb": "256",
        "metrics_period_ms": "50",
        "gpu": "2,0",
    }
    assert render_parameters(TextSettings()) == {"core_model": "core"}
    assert render_parameters(UnarySettings(9)) == {"max_concurrent_requests": "9", "ensemble": "ensemble"}


@hypothesis_settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters=",", exclude_categories=["Cs", "Cc"]), max_size=8),
            st.integers(1, 10**6).map(lambda thousandths: thousandths / 1000),
        ),
        max_size=4,
        unique_by=lambda pair: pair[0],
    )
)
def test_settings_weights_of_any_tenants_come_back_as_they_were(weights: list[tuple[str, float]]) -> None:
    settings = CoreSettings(tenant_weights=tuple(weights))
    assert parse_parameters(CoreSettings, _wrapped(render_parameters(settings))) == settings


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("batch_scheduler_policy", "static", "must be one of guaranteed_no_evict, max_utilization, not 'static'"),
        ("batch_scheduler_policy", "", "must be one of"),
        ("enable_kv_cache_reuse", "True", "must be true or false, not 'True'"),
        ("enable_kv_cache_reuse", "1", "must be true or false"),
        *[(name, "-1", "must be a whole number of at least 0, not '-1'") for name in COUNTS],
        *[(name, "0", "must be a whole number of at least 1, not '0'") for name in POSITIVES],
        *[(name, text, "must be a whole number") for name in (*COUNTS, *POSITIVES) for text in ("", "1.5", "ten", "²")],
        *[("stream_interval_ms", text, "must be a whole number from 0 to 1000") for text in ("-1", "1001", "", "ten")],
        ("tenant_weights", "gold", "must be name=weight,... with weights above 0, not 'gold'"),
        ("tenant_weights", "gold=3,silver=0", "not 'silver=0'"),
        ("tenant_weights", "gold=-1", "not 'gold=-1'"),
        ("tenant_weights", "gold=nan", "not 'gold=nan'"),
        ("tenant_weights", "gold=inf", "not 'gold=inf'"),
        ("tenant_weights", "3", "not '3'"),
        ("tenant_weights", "gold=1,gold=3", "name each tenant once"),
    ],
)
def test_settings_a_bad_value_names_its_key(name: str, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_parameters(CoreSettings, _wrapped({"max_queue_size": "5", name: text}))
    assert str(caught.value).startswith(f"parameters.{name}: ")
    assert wanted in str(caught.value)


@pytest.mark.parametrize("text", ["", "a/b", "../core", ".hidden"])
def test_settings_a_model_is_named_plainly(text: str) -> None:
    with pytest.raises(ConfigError, match=r"parameters\.core_model: must be the plain name"):
        parse_parameters(TextSettings, {"core_model": text})


def test_settings_an_unknown_key_names_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"parameters\.max_queue_sise: unknown; known are .*max_queue_size"):
        parse_parameters(CoreSettings, _wrapped({"max_queue_sise": "4"}))


@dataclass(frozen=True)
class Limits:
    """Of an engine that exists in this test alone."""

    supports_draft_tokens: bool
    max_num_seqs: int = 4
    max_num_tokens: int = 64


def test_settings_draft_tokens_are_refused_where_each_sequence_with_them_takes_a_pass_of_its_own() -> None:
    check_limits(CoreSettings(max_draft_tokens=3), Limits(supports_draft_tokens=True))
    check_limits(CoreSettings(), Limits(supports_draft_tokens=False))
    with pytest.raises(ConfigError, match=r"max_draft_tokens: must be 0, not 3: .*slots"):
        check_limits(CoreSettings(max_draft_tokens=3), Limits(supports_draft_tokens=False))
