"""Every bound of a request to the core, by field, and what its sequences are then."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.core import SPEC
from tests.fakes.serving import context, spell
from trident_backend.requests.output_options import OutputOptions
from trident_backend.requests.request import Request, parse_request
from trident_backend.requests.sampling_options import parse_bad_words, parse_logit_bias
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_ensemble.contract import tensors
from trident_ensemble.contract.client_input import check_parameters
from trident_ensemble.contract.errors import ContextLengthError, InvalidGuideError, RequestError
from trident_ensemble.contract.manifest import Generation

GREEDY = Generation(end_ids=(2, 3), temperature=0.0, top_k=0, top_p=1.0)
SAMPLING = Generation((2,), 0.7, 20, 0.8, 0.05, 1.1, 6, ((4,), (5, 6)), ("\nUser:",))


def _parse(defaults: Generation = GREEDY, now: float = 0.0, **fields: Any) -> Request:
    given_fields = {"input_ids": [1, 2, 3], "max_tokens": 4} | fields
    return parse_request(itertools.count(1), given_fields, context(SPEC, defaults), now)


def _first(defaults: Generation = GREEDY, **fields: Any) -> Sequence:
    return _parse(defaults, **fields).first


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"input_ids": []}, "input_ids", "at least one"),
        ({"input_ids": [1] * 64}, "input_ids", "64"),
        ({"input_ids": [1, 97]}, "input_ids", "96"),
        ({"input_ids": [-1]}, "input_ids", "0"),
        ({"max_tokens": -2}, "max_tokens", "at least -1"),
        ({"max_tokens": 62}, "max_tokens", "at most 61"),
        ({"min_tokens": -1}, "min_tokens", "at least 0"),
        ({"min_tokens": 5}, "min_tokens", "at most max_tokens 4"),
        ({"min_length": 5}, "min_length", "at most max_tokens 4"),
        ({"min_tokens": 2, "min_length": 3}, "min_length", "3 contradicts 2"),
        ({"num_return_sequences": 0}, "num_return_sequences", "from 1 to 4"),
        ({"num_return_sequences": 5}, "num_return_sequences", "from 1 to 4"),
        ({"temperature": -0.1}, "temperature", "at least 0"),
        ({"temperature": NAN}, "temperature", "finite"),
        ({"temperature": INF}, "temperature", "finite"),
        ({"top_k": -1}, "top_k", "at least 0"),
        ({"top_p": -0.1}, "top_p", "from 0 to 1"),
        ({"top_p": 1.1}, "top_p", "from 0 to 1"),
        ({"top_p": NAN}, "top_p", "from 0 to 1"),
        ({"min_p": -0.1}, "min_p", "from 0 to 1"),
        ({"min_p": 1.1}, "min_p", "from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty", "above 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty", "at least 0"),
        ({"repetition_penalty": INF}, "repetition_penalty", "finite"),
        ({"presence_penalty": 2.1}, "presence_penalty", "from -2 to 2"),
        ({"frequency_penalty": -2.1}, "frequency_penalty", "from -2 to 2"),
        ({"frequency_penalty": NAN}, "frequency_penalty", "from -2 to 2"),
        ({"logit_bias": b"{"}, "logit_bias", "is not valid JSON"),
        ({"logit_bias": b"[" * 60_000}, "logit_bias", "is not valid JSON"),
        ({"logit_bias": b" " * 65_537}, "logit_bias", "at most 65536"),
        ({"logit_bias": b"\xff"}, "logit_bias", "UTF-8"),
        ({"logit_bias": b"[1, 2]"}, "logit_bias", "object"),
        ({"logit_bias": b'{"97": 1}'}, "logit_bias", "'97' is not a token id from 0 to 96"),
        ({"logit_bias": b'{"-1": 1}'}, "logit_bias", "not a token id"),
        ({"logit_bias": b'{"07": 1}'}, "logit_bias", "not a token id"),
        ({"logit_bias": '{"٧": 1}'.encode()}, "logit_bias", "not a token id"),
        ({"logit_bias": b'{"7": 100.5}'}, "logit_bias", "of token 7 must be a number from -100 to 100, not 100.5"),
        ({"logit_bias": b'{"7": 1' + b"0" * 400 + b"}"}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": b'{"7": -Infinity}'}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": b'{"7": NaN}'}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": b'{"7": true}'}, "logit_bias", "a number"),
        ({"logit_bias": b'{"7": "1"}'}, "logit_bias", "a number"),
        ({"logit_bias": json.dumps({str(i): 1 for i in range(1025)}).encode()}, "logit_bias", "at most 1024"),
        ({"bad_words_list": [1, 2, 3]}, "bad_words_list", "[2, n]"),
        ({"bad_words_list": [97, 1]}, "bad_words_list", "from 0 to 96, not 97"),
        ({"bad_words_list": [-1, 1]}, "bad_words_list", "from 0 to 96, not -1"),
        ({"bad_words_list": [5, 0]}, "bad_words_list", "rise from 1 to at most 1"),
        ({"bad_words_list": [5, 2]}, "bad_words_list", "not 2"),
        ({"bad_words_list": [5, 6, 1, 1]}, "bad_words_list", "not 1"),
        ({"bad_words_list": [5, 6, -1, 1]}, "bad_words_list", "not -1"),
        ({"bad_words_list": [1] * 32_770}, "bad_words_list", "at most 16384"),
        ({"beam_width": 2}, "beam_width", "num_return_sequences"),
        ({"length_penalty": 0.5}, "length_penalty", "must be 1"),
        ({"return_context_logits": True}, "return_context_logits", "must be false: use return_prompt_log_probs"),
        ({"return_generation_logits": True}, "return_generation_logits", "use return_log_probs"),
        ({"num_top_log_probs": 21}, "num_top_log_probs", "from 0 to 20"),
        ({"num_top_log_probs": -1}, "num_top_log_probs", "from 0 to 20"),
        ({"end_id": 97}, "end_id", "96"),
        ({"end_id": -2}, "end_id", "-1"),
        ({"stop_token_ids": [1, 97]}, "stop_token_ids", "from 0 to 96"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "from 0 to 96"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids", "at most 1024"),
        ({"stop_words": [b"%d" % i for i in range(33)]}, "stop_words", "at most 32"),
        ({"stop_words": [b"a" * 1025]}, "stop_words", "at most 1024"),
        ({"stop_words": [b"a", b"a\xc3"]}, "stop_words", "at byte 1"),
        ({"echo": True, "exclude_input_in_output": True}, "exclude_input_in_output", "both are true"),
        ({"echo": False, "exclude_input_in_output": False}, "exclude_input_in_output", "both are false"),
        ({"guided_decoding_guide_type": b"regex"}, "guided_decoding_guide", "is missing"),
        ({"guided_decoding_guide": b"a+"}, "guided_decoding_guide_type", "is missing"),
        ({"guided_decoding_guide_type": b"\xff"}, "guided_decoding_guide_type", "UTF-8"),
        ({"timeout_ms": 0}, "timeout_ms", "at least 1"),
        ({"timeout_ms": -3}, "timeout_ms", "at least 1"),
        ({"marker_ids": [97]}, "marker_ids", "from 0 to 96"),
        ({"marker_ids": [-1]}, "marker_ids", "from 0 to 96"),
        ({"marker_ids": list(range(17))}, "marker_ids", "at most 16"),
        ({"marker_ids": [1], "echo": True}, "marker_ids", "no echo"),
        ({"return_token_bytes": True}, "return_token_bytes", "return_log_probs or return_prompt_log_probs"),
        ({"priority": 101}, "priority", "-100 to 100"),
        ({"priority": -101}, "priority", "-100 to 100"),
        ({"tenant": b"t" * 257}, "tenant", "at most 256"),
        ({"tenant": b"\xff"}, "tenant", "UTF-8"),
        ({"cache_salt": b"s" * 257}, "cache_salt", "at most 256"),
        ({"cache_salt": b"a\xc3"}, "cache_salt", "at byte 1"),
    ],
)
def test_requests_a_bad_field_is_named_with_its_limit(fields: dict[str, Any], field: str, limit: str) -> None:
    with pytest.raises(RequestError) as caught:
        _parse(**fields)
    assert caught.value.field == field
    assert limit in str(caught.value)
    assert len(str(caught.value)) < 300, "an error does not repeat what it was sent"


@pytest.mark.parametrize(
    "fields",
    [
        {"input_ids": [1] * 63, "max_tokens": 1},
        {"input_ids": [1] * 63, "max_tokens": 0},
        {"min_tokens": 4, "min_length": 4},
        {"num_return_sequences": 4},
        {"beam_width": 1, "length_penalty": 1.0, "pad_id": 0, "return_context_logits": False},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0, "top_p": 1.0, "min_p": 1.0, "num_top_log_probs": 20},
        {"stop_words": [b"a" * 1024], "stop_token_ids": [0, 96], "end_id": 96},
        {"stop_words": [b"a"] * 100 + [b""] * 100},
        {"echo": True, "exclude_input_in_output": False},
        {"marker_ids": [5] * 100 + list(range(16))},
        {"return_token_bytes": True, "return_prompt_log_probs": True},
        {"return_token_bytes": True, "num_top_log_probs": 1},
        {"timeout_ms": 1, "priority": 100, "tenant": b"t" * 256, "seed": 2**64 - 1},
    ],
)
def test_requests_what_is_just_within_bounds_is_taken(fields: dict[str, Any]) -> None:
    _parse(**fields)


def test_requests_the_checkpoints_defaults_hold_until_the_request_says_otherwise() -> None:
    own = SamplingParams(0.7, 20, 0.8, 0.05, 1.1, bad_words=((4,), (5, 6)), min_tokens=6, seed=7)
    assert _first(SAMPLING, max_tokens=9, seed=7).sampling == own
    asked: dict[str, Any] = {
        "temperature": 0.0,
        "top_k": 3,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "min_length": 0,
    }
    asked |= {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": b'{"9": -1.5, "4": 2}'}
    assert _first(SAMPLING, **asked, seed=7).sampling == SamplingParams(
        0.0, 3, 1.0, 0.0, 1.0, 0.5, -0.5, ((4, 2.0), (9, -1.5)), ((4,), (5, 6)), seed=7
    )


@pytest.mark.parametrize("fields", [{}, {"max_tokens": -1}, {"request_output_len": -1}])
@pytest.mark.parametrize(("num_prompt_tokens", "default", "expected"), [(3, 4096, 61), (3, 20, 20), (63, 20, 1)])
def test_requests_a_request_that_does_not_say_how_much_gets_what_is_left(
    fields: dict[str, int], num_prompt_tokens: int, default: int, expected: int
) -> None:
    values = {"input_ids": [1] * num_prompt_tokens, **fields}
    limits = replace(context(SPEC, GREEDY), default_max_tokens=default)
    assert parse_request(itertools.count(1), values, limits, 0.0).first.max_tokens == expected


@pytest.mark.parametrize("guide", [b"x" * 262_145, b"\xff"])
def test_requests_a_guide_that_cannot_be_read_is_an_invalid_one(guide: bytes) -> None:
    with pytest.raises(InvalidGuideError, match=r"262144|UTF-8"):
        _parse(guided_decoding_guide_type=b"regex", guided_decoding_guide=guide)


@pytest.mark.parametrize("fields", [{"max_tokens": 62}, {"input_ids": [1] * 64}])
def test_requests_what_is_longer_than_the_engine_holds_has_a_reason(fields: dict[str, Any]) -> None:
    with pytest.raises(ContextLengthError, match="64"):
        _parse(**fields)


def test_requests_the_checkpoints_fewest_tokens_yield_to_the_requests_most() -> None:
    assert _first(SAMPLING, max_tokens=2).sampling.min_tokens == 2


@pytest.mark.parametrize("field", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_requests_asking_a_greedy_checkpoint_for_a_filter_samples(field: dict[str, Any]) -> None:
    assert _first(**field).sampling.temperature == 1.0
    assert _first(**field, temperature=0.0).sampling.temperature == 0.0
    assert _first(SAMPLING, **field).sampling.temperature == 0.7


def test_requests_no_mass_at_all_is_the_likeliest_token_or_what_the_requests_top_k_keeps() -> None:
    for defaults in (GREEDY, SAMPLING):
        alone, with_top_k = _first(defaults, top_p=0.0).sampling, _first(defaults, top_p=0.0, top_k=7).sampling
        assert (alone.top_k, alone.top_p) == (1, 1.0)
        assert (with_top_k.top_k, with_top_k.top_p) == (7, 1.0)


def test_requests_a_field_may_be_given_under_its_other_name() -> None:
    other: dict[str, Any] = {
        "random_seed": 5, "runtime_top_k": 3, "runtime_top_p": 0.5, "len_penalty": 1.0, "input_lengths": 3,
    }  # fmt: skip
    sampling = _first(**other).sampling
    assert (sampling.seed, sampling.top_k, sampling.top_p) == (5, 3, 0.5)
    with pytest.raises(RequestError, match="random_seed: is another name for seed: 5 contradicts 6"):
        _first(random_seed=5, seed=6)


def test_requests_end_ids_are_a_set_that_a_request_may_widen_or_ignore() -> None:
    assert _first(end_id=9).end_ids == {2, 3, 9}
    assert _first(end_id=-1, ignore_eos=True).end_ids == frozenset()
    assert _first(stop_token_ids=[7, 8]).stop_ids == {7, 8}
    assert _first(stop_token_ids=[7, 8], ignore_eos=True).stop_ids == {7, 8}


def _matches(sequence: Sequence, token_ids: list[int]) -> str | None:
    assert sequence.stop_strings is not None
    return next((word for token_id in token_ids if (word := sequence.stop_strings.append(token_id)) is not None), None)


def test_requests_stop_words_are_the_requests_and_the_checkpoints() -> None:
    chatty = replace(GREEDY, stop_strings=(spell(9),))
    assert _first().stop_strings is None
    assert _first(stop_words=[b"", b""]).stop_strings is None, "documented clients send one empty word"
    for fields, expected in (({}, spell(9)), ({"stop_words": [spell(8).encode()]}, spell(8))):
        assert _matches(_first(chatty, **fields), [7, 8, 9]) == (expected if fields else spell(9))
    both = _first(chatty, stop_words=[spell(8).encode()])
    assert _matches(both, [7, 9]) == spell(9)
    assert _first(chatty, ignore_eos=True).stop_strings is None
    assert _matches(_first(chatty, ignore_eos=True, stop_words=[spell(8).encode()]), [9, 8]) == spell(8)


def test_requests_stop_words_know_of_min_tokens_and_the_echoed_prompt() -> None:
    words = [spell(9).encode()]
    late = _first(stop_words=words, min_tokens=2)
    assert _matches(late, [9, 1]) is None
    assert _matches(late, [9]) == spell(9)
    echoing = _first(stop_words=words, echo=True, input_ids=[9, 9])
    assert echoing.stop_strings is not None
    assert echoing.stop_strings.num_safe_tokens == 2
    assert _matches(echoing, [1, 9]) == spell(9)
    assert echoing.stop_strings.num_characters == len("aaa" * 3)
    inclusive = _first(stop_words=words, include_stop_str_in_output=True)
    assert inclusive.include_stop
    assert _matches(inclusive, [1, 9]) == spell(9)
    assert inclusive.stop_strings is not None
    assert inclusive.stop_strings.num_characters == len("aaa" * 2)


def test_requests_siblings_share_all_but_what_they_write() -> None:
    request = _parse(num_return_sequences=3, stop_words=[b"x"], seed=5, return_prompt_log_probs=True, tenant=b"t")
    first, *others = request.sequences
    assert [sequence.sequence_id for sequence in request.sequences] == [1, 2, 3]
    assert [sequence.sampling.index for sequence in request.sequences] == [0, 1, 2]
    assert {sequence.sampling.seed for sequence in request.sequences} == {5}
    assert first.parent is None
    assert all(sequence.parent is first for sequence in others)
    assert [sequence.sampling.prompt_log_probs for sequence in request.sequences] == [True, False, False]
    assert len({id(sequence.stop_strings) for sequence in request.sequences}) == 3
    for name, value in ((each.name, getattr(first, each.name)) for each in dataclasses.fields(first)):
        for other in others:
            if isinstance(value, list):
                assert getattr(other, name) == value
                assert getattr(other, name) is not value, name
            elif name not in ("sequence_id", "sampling", "parent", "stop_strings"):
                assert getattr(other, name) == value


def test_requests_a_prompt_with_log_probs_is_computed_anew() -> None:
    assert not _first(return_prompt_log_probs=True, reuse_cache=True).reuse_cache
    assert _first(return_log_probs=True).reuse_cache


@pytest.mark.parametrize(
    ("fields", "output", "prompt"),
    [
        ({}, False, False),
        ({"return_log_probs": True}, True, False),
        ({"return_prompt_log_probs": True}, False, True),
        ({"num_top_log_probs": 3}, True, False),
        ({"num_top_log_probs": 3, "return_prompt_log_probs": True}, False, True),
        ({"num_top_log_probs": 3, "return_prompt_log_probs": True, "return_log_probs": True}, True, True),
        ({"num_top_log_probs": 3, "return_log_probs": False}, False, False),
    ],
)
def test_requests_which_log_probs_are_wanted(fields: dict[str, Any], output: bool, prompt: bool) -> None:
    sampling = _first(**fields).sampling
    assert (sampling.log_probs, sampling.prompt_log_probs) == (output, prompt)


def test_requests_how_the_answer_is_wanted() -> None:
    assert _parse().output == OutputOptions()
    asked: dict[str, Any] = {"stream": True, "flow_control": True, "echo": True, "skip_special_tokens": False}
    asked |= {"return_perf_metrics": True, "return_num_input_tokens": False, "return_num_output_tokens": False}
    assert _parse(**asked).output == OutputOptions(True, True, True, False, True, False, False)


def test_requests_the_input_that_is_not_excluded_is_echoed_unless_it_streams() -> None:
    assert _parse(exclude_input_in_output=False).output.echo
    assert not _parse(exclude_input_in_output=False, stream=True).output.echo
    assert not _parse(exclude_input_in_output=True).output.echo
    assert _parse(echo=True, stream=True).output.echo


def test_requests_guides_are_a_type_and_a_text() -> None:
    assert _parse().guide is None
    asked: dict[str, Any] = {"guided_decoding_guide_type": b"regex", "guided_decoding_guide": b"a+"}
    assert _parse(**asked).guide == ("regex", "a+")
    assert _parse(guided_decoding_guide_type=b"json").guide == ("json", "")
    assert _parse(guided_decoding_guide_type=b"", guided_decoding_guide=b"").guide is None


def test_requests_what_scheduling_goes_by_is_carried_over() -> None:
    plain = _parse(now=5.0).first
    assert (plain.arrived_at, plain.deadline, plain.priority, plain.tenant) == (5.0, math.inf, 0, "")
    assert (plain.cache_salt, plain.reuse_cache) == ("", True)
    asked: dict[str, Any] = {"timeout_ms": 250, "priority": -100, "tenant": "Zoë".encode(), "cache_salt": b"pepper"}
    rich = _parse(now=5.0, **asked, reuse_cache=False).first
    assert (rich.arrived_at, rich.deadline, rich.priority, rich.tenant) == (5.0, 5.25, -100, "Zoë")
    assert (rich.cache_salt, rich.reuse_cache) == ("pepper", False)


def test_requests_seeds_are_drawn_when_unset() -> None:
    assert len({_first().sampling.seed for _ in range(8)}) == 8
    assert _first(seed=0).sampling.seed == 0


@given(st.dictionaries(st.integers(0, 96), st.floats(-100, 100), max_size=50))
def test_requests_any_biases_are_read_as_they_are(biases: dict[int, float]) -> None:
    assert dict(parse_logit_bias(json.dumps(biases), 97)) == biases


@given(st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=4), max_size=8), st.integers(0, 3), st.data())
def test_requests_bad_words_are_read_from_their_rows(
    words: list[list[int]], num_fill: int, data: st.DataObject
) -> None:
    token_ids = [token_id for word in words for token_id in word]
    ends = list(itertools.accumulate(map(len, words)))
    width = max(len(token_ids), len(ends)) + num_fill
    fill = data.draw(st.sampled_from([-1, 0]))
    rows = token_ids + [fill] * (width - len(token_ids)) + ends + [-1] * (width - len(ends))
    parsed = parse_bad_words("bad_words", rows, 97)
    assert [list(word) for word in parsed] == words


def test_requests_bad_words_of_request_and_checkpoint_add_up() -> None:
    assert _first(SAMPLING, bad_words_list=[5, 6, 8, 2, 3, -1]).sampling.bad_words == ((4,), (5, 6), (8,))
    assert _first(bad_words_list=[-1, -1]).sampling.bad_words == (), "how none are said"


def test_requests_an_unknown_parameter_is_named() -> None:
    check_parameters({"id": "x", "timeout": 3}, tensors.CORE_INPUTS)
    with pytest.raises(RequestError, match="max_tokns"):
        check_parameters({"max_tokns": 3}, tensors.CORE_INPUTS)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"bad_words_list": [1, 2, 3]}, "bad_words"),
        ({"bad_words_list": [97, 1]}, "bad_words"),
        ({"bad_words_list": [0] * 40_000}, "bad_words"),
        ({"input_ids": [97]}, "text_input"),
        ({"input_ids": [1] * 64}, "text_input"),
    ],
)
def test_requests_errors_name_what_the_client_sent(fields: dict[str, Any], name: str) -> None:
    """What has come through preprocessing is called by its input's name; what clients send themselves, by its own."""
    given = {"input_ids": [1], "max_tokens": 4, **fields}
    for flow_control, named in ((True, name), (False, next(iter(fields)))):
        with pytest.raises(RequestError) as caught:
            parse_request(itertools.count(), {**given, "flow_control": flow_control}, context(), 0.0)
        assert caught.value.field == named
