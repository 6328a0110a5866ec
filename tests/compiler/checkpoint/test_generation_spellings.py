"""Settings of generation_config.json in other spellings: each has its plain meaning, or is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, TopKLogitsWarper, TopPLogitsWarper

from trident_compiler.checkpoint.generation_defaults import not_served, read_generation
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.contract.manifest import Generation

VOCAB_SIZE = 400
GREEDY = (0.0, 0, 1.0, 0.0)


def defaults(**settings: Any) -> Generation:
    values = json.loads(json.dumps(settings))
    return read_generation(JsonConfig(values, "generation_config.json"), (0,), VOCAB_SIZE)


def sampling(**settings: Any) -> tuple[float, int, float, float]:
    read = defaults(do_sample=True, **settings)
    return read.temperature, read.top_k, read.top_p, read.min_p


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0}, GREEDY),
        ({"temperature": 0.0, "top_p": 0.5, "min_p": 0.1}, GREEDY),
        ({"temperature": None}, (1.0, 50, 1.0, 0.0)),
        ({"temperature": 1}, (1.0, 50, 1.0, 0.0)),
        ({"top_p": 0}, (1.0, 1, 1.0, 0.0)),
        ({"top_p": 0, "top_k": 20}, (1.0, 1, 1.0, 0.0)),
        ({"top_p": 1}, (1.0, 50, 1.0, 0.0)),
        ({"top_k": 20.0}, (1.0, 20, 1.0, 0.0)),
        ({"top_k": 0}, (1.0, 0, 1.0, 0.0)),
        ({"top_k": -1}, (1.0, 0, 1.0, 0.0)),
        ({"top_k": None}, (1.0, 50, 1.0, 0.0)),
        ({"top_k": VOCAB_SIZE + 5}, (1.0, VOCAB_SIZE, 1.0, 0.0)),
        ({"min_p": None}, (1.0, 50, 1.0, 0.0)),
        ({"min_p": 0}, (1.0, 50, 1.0, 0.0)),
        ({"min_p": 1}, (1.0, 50, 1.0, 1.0)),
    ],
)
def test_generation_spellings_a_plain_meaning_is_taken(
    settings: dict[str, Any], expected: tuple[float, int, float, float]
) -> None:
    assert sampling(**settings) == expected


def test_generation_spellings_without_sampling_its_settings_are_nothing() -> None:
    for do_sample in (False, None, 0, 0.0):
        read = defaults(do_sample=do_sample, temperature="hot", top_k=-3.5)
        assert (read.temperature, read.top_k, read.top_p, read.min_p) == GREEDY
    assert defaults(do_sample=1).temperature == 1.0


def test_generation_spellings_the_other_settings() -> None:
    read = defaults(
        repetition_penalty=1, min_new_tokens=4.0, bad_words_ids=None, suppress_tokens=[1.0], stop_strings=None
    )
    assert (read.repetition_penalty, read.min_tokens, read.bad_words, read.stop_strings) == (1.0, 4, ((1,),), ())
    assert defaults(min_new_tokens=None, stop_strings=[]) == defaults()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_sample", "true"),
        ("do_sample", 2),
        ("temperature", -0.5),
        ("temperature", "0.7"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**400),
        ("top_k", 20.5),
        ("top_k", "20"),
        ("top_k", True),
        ("top_k", 2**31),
        ("top_k", 1e300),
        ("top_p", -0.1),
        ("top_p", 1.5),
        ("top_p", [0.9]),
        ("min_p", "0"),
        ("min_p", {}),
        ("repetition_penalty", 0),
        ("repetition_penalty", "1"),
        ("min_new_tokens", 0.5),
        ("min_new_tokens", 2**40),
        ("bad_words_ids", False),
        ("bad_words_ids", [[1, -1]]),
        ("bad_words_ids", {"1": [1]}),
        ("suppress_tokens", 0),
        ("suppress_tokens", ["1"]),
        ("stop_strings", ""),
        ("stop_strings", False),
        ("stop_strings", ["a", None]),
    ],
)
def test_generation_spellings_anything_else_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^generation_config.json: {key} = "):
        defaults(**{"do_sample": True, key: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
KEYS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens", "bad_words_ids",
        "suppress_tokens", "stop_strings", "num_beams", "typical_p")  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.booleans())
def test_generation_spellings_whatever_is_there_is_read_or_refused(settings: dict[str, Any], sample: bool) -> None:
    settings = {"do_sample": sample, **settings}
    not_served(JsonConfig(settings, "generation_config.json"))
    try:
        read = defaults(**settings)
    except CheckpointError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert any(refused.startswith(f"generation_config.json: {key} = ") for key in settings)
        return
    assert read.temperature >= 0
    assert 0 <= read.top_k <= VOCAB_SIZE
    assert 0 < read.top_p <= 1
    assert 0 <= read.min_p <= 1


def test_generation_spellings_transformers_keeps_the_likeliest_alone_where_top_p_is_0() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(8, 1, dtype=torch.long)
    of_top_p, of_top_k = TopPLogitsWarper(0.0)(ids, logits), TopKLogitsWarper(1)(ids, logits)
    assert torch.equal(of_top_p, of_top_k)
    assert sampling(top_p=0)[1:3] == (1, 1.0)


def test_generation_spellings_what_transformers_writes_by_default_is_all_served() -> None:
    written = JsonConfig(json.loads(GenerationConfig().to_json_string(use_diff=False)), "generation_config.json")
    assert not_served(written) == ()
    assert read_generation(written, (), VOCAB_SIZE) == Generation((), 0.0, 0, 1.0)
