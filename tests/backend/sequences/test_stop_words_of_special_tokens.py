"""A stop word that is the text of a special token does all that the token's id does, for every family of tokenizers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from tests.backend.sequences.test_stop_strings import encode, outputs, parts, special_of
from tests.backend.serving.test_responses import Reader
from tests.fakes.core import SPEC
from tests.fakes.serving import NO_DEFAULTS
from tests.mistral_tokenizers import REAL
from tests.tokenizer_zoo import HIDDEN, ZOO, tokenizer_of
from trident_backend.requests.request import Request, RequestContext, parse_request
from trident_backend.sampling.logits_processors import RequestLogitBias
from trident_backend.scheduling.outcomes import accept
from trident_backend.sequences.choices import Choices
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row, ScheduledChunk
from trident_backend.sequences.stop_strings import StopStrings
from trident_backend.serving.answers import Answer
from trident_backend.serving.events import TokenEvent
from trident_ensemble.contract.chunk_header import ALL
from trident_ensemble.contract.manifest import Generation
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.text.special_tokens import named_tokens, special_tokens_of
from trident_ensemble.text.token_bytes import TokenBytes


class Ending(NamedTuple):
    """What became of an output: its ids, why it ended, and the chunks of its text."""

    output_ids: list[int]
    reason: str | None
    stop_reason: str
    text: str


def parse(family: str, defaults: Generation = NO_DEFAULTS, **fields: Any) -> Request:
    detokenizer, anchors = parts(family)
    special = special_of(family)
    spec = replace(SPEC, vocab_size=tokenizer_of(family).get_vocab_size(), max_seq_len=500, num_blocks=500)
    stop_strings = partial(StopStrings, detokenizer, anchors, special=special)
    values = {"input_ids": [3], "max_tokens": 400, "stream": True, **fields}
    limits = RequestContext(spec, defaults, stop_strings, TokenBytes(tokenizer_of(family)), special)
    return parse_request(itertools.count(1), values, limits, 0.0)


def generate(family: str, request: Request, output_ids: list[int], steps: list[int]) -> list[Ending]:
    """Every sequence of a request says the same, in steps of so many tokens, of which all but one were draft tokens."""
    answer = Answer(request, Reader(), CoreSettings())
    return [_generate(family, stream, output_ids, steps) for stream in answer.streams]


def _id_of(family: str, token: str) -> int:
    token_id = tokenizer_of(family).token_to_id(token)
    assert token_id is not None
    return token_id


def _generate(family: str, stream: Any, output_ids: list[int], steps: list[int]) -> Ending:
    detokenizer, anchors = parts(family)
    sequence: Sequence = stream.sequence
    rest, text, reason = output_ids, "", None
    for size in itertools.cycle(steps):
        if reason is not None or not rest:
            break
        chosen, rest = rest[:size], rest[size:]
        chunk = ScheduledChunk(sequence, 1, True, tuple(chosen[:-1]))
        num_tokens, reason, _ = accept(chunk, Choices(chosen), 0)
        sequence.finish_reason = reason
        num_safe = None if sequence.stop_strings is None else sequence.stop_strings.num_safe_tokens
        stream.take(TokenEvent(sequence.sequence_id, num_tokens, reason, None, num_safe))
        if stream.is_held:
            context = stream.context_ids(anchors)
            ids, part, _ = stream.send(0.0)
            skip = stream.answer.request.output.skip_special_tokens
            shown = ids[: part.num_ids - part.num_hidden]
            added = detokenizer.text(context, shown, is_last=stream.ended, skip_special_tokens=skip)
            text += added if part.num_characters == ALL else added[: part.num_characters]
    said = sequence.token_ids[sequence.num_prompt_tokens :]
    return Ending(said, None if reason is None else reason.value, sequence.stop_reason, text)


@pytest.mark.slow
@pytest.mark.parametrize("family", ZOO)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_stop_words_of_special_tokens_it_stops_as_its_id_does(family: str, data: st.DataObject) -> None:
    special = special_of(family)
    token_id = data.draw(st.sampled_from(sorted(special.by_id)))
    word = special.by_id[token_id].content
    output_ids = [*data.draw(outputs(family)), *data.draw(st.just([]) | outputs(family))]
    output_ids.insert(data.draw(st.integers(0, len(output_ids))), token_id)
    steps = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    fields: dict[str, Any] = {
        "ignore_eos": data.draw(st.booleans()),
        "skip_special_tokens": data.draw(st.sampled_from([True, True, False])),
        "include_stop_str_in_output": data.draw(st.booleans()),
        "num_return_sequences": data.draw(st.sampled_from([1, 1, 2])),
    }
    others = data.draw(st.lists(st.sampled_from([b"the", b"\xef\xbf\xbd", b"never said"]), max_size=1))
    defaults = replace(
        NO_DEFAULTS, end_ids=tuple(data.draw(st.lists(st.sampled_from(sorted(special.by_id)), max_size=1)))
    )
    by_id = parse(family, defaults, **fields, stop_words=others, stop_token_ids=[token_id])
    in_words = parse(family, defaults, **fields, stop_words=[*others, word.encode()])
    expected = generate(family, by_id, output_ids, steps)
    for ending, reference in zip(generate(family, in_words, output_ids, steps), expected, strict=True):
        stop_reason = word if reference.stop_reason == str(token_id) else reference.stop_reason
        assert ending == reference._replace(stop_reason=stop_reason)


@pytest.mark.parametrize("family", ZOO)
def test_stop_words_of_special_tokens_every_special_token_is_found_by_its_name(family: str) -> None:
    for token in HIDDEN:
        token_id = _id_of(family, token)
        output_ids = [*encode(family, "the trident "), token_id, *encode(family, "prongs")]
        (ending,) = generate(family, parse(family, stop_words=[token.encode()]), output_ids, [1])
        assert ending[:3] == (output_ids[: output_ids.index(token_id) + 1], "stop", token)
        assert ending.text == tokenizer_of(family).decode(output_ids[: output_ids.index(token_id)])


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_stop_words_of_special_tokens_the_special_tokens_of_real_tokenizers_are_found_by_their_names(name: str) -> None:
    tokenizer = REAL[name]().tokenizer
    special = special_tokens_of(tokenizer)
    assert {"<s>", "</s>", "[INST]", "[/INST]"} <= {token.content for token in special.by_id.values()}
    for token_id, token in special.by_id.items():
        assert special.ids_of(token.content) == (token_id,)
        assert special.is_part_of("\n" + token.content)
        assert not special.is_part_of(token.content)


def test_stop_words_of_special_tokens_the_longest_of_those_that_end_with_the_token_counts() -> None:
    output_ids = [*encode("gemma", "one\n"), _id_of("gemma", "<|late|>")]
    for words, expected in [
        (["<|late|>", "\n<|late|>"], ("\n<|late|>", "one")),
        (["<|late|>", "e\n<|late|>", "\n"], ("\n", "one")),
        (["<|late|>", "x\n<|late|>"], ("<|late|>", "one\n")),
    ]:
        request = parse("gemma", stop_words=[word.encode() for word in words])
        (ending,) = generate("gemma", request, output_ids, [1])
        assert (ending.stop_reason, ending.text) == expected


def test_stop_words_of_special_tokens_the_checkpoints_stop_strings_may_be_special_tokens_too() -> None:
    defaults = replace(NO_DEFAULTS, stop_strings=("<|late|>",))
    token_id = _id_of("llama_2", "<|late|>")
    assert parse("llama_2", defaults).first.stop_ids == {token_id}
    assert parse("llama_2", defaults, ignore_eos=True).first.stop_ids == frozenset()


def test_stop_words_of_special_tokens_an_id_that_is_named_both_ways_is_reported_as_an_id() -> None:
    token_id = _id_of("llama_2", "<|late|>")
    request = parse("llama_2", stop_words=[b"<|late|>"], stop_token_ids=[token_id])
    (ending,) = generate("llama_2", request, [token_id], [1])
    assert (ending.reason, ending.stop_reason) == ("stop", str(token_id))


def test_stop_words_of_special_tokens_it_is_banned_until_there_are_so_many_tokens_as_must_come() -> None:
    sequence = parse("llama_2", stop_words=[b"<|late|>"], min_tokens=2).first
    edits = RequestLogitBias(sequence, tokenizer_of("llama_2").get_vocab_size())
    token_id = _id_of("llama_2", "<|late|>")
    assert [token_id in edits.banned_ids(Row(sequence, place)) for place in (1, 2, 3)] == [True, True, False]


def test_stop_words_of_special_tokens_what_is_no_more_than_a_part_of_its_text_does_not_name_it() -> None:
    for family in ZOO:
        special = special_of(family)
        for word in ("<|late|", "|late|>", "<|late|>x", "<think>", " <|late|>", "<|late|>\n", ""):
            assert special.ids_of(word) == ()


def test_stop_words_of_special_tokens_spaces_that_the_tokenizer_takes_for_a_part_of_a_token_may_be_named_with_it() -> (
    None
):
    """As of Phi 3's, behind which a line's end never comes, because prompts lose it."""
    tokenizer = Tokenizer.from_str(tokenizer_of("llama_2").to_str())
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|begin|>", lstrip=True)])
    special = special_tokens_of(tokenizer)
    assert special.ids_of("<|end|>\n") == special.ids_of("<|end|>") == (tokenizer.token_to_id("<|end|>"),)
    assert special.ids_of(" <|begin|>") == (tokenizer.token_to_id("<|begin|>"),)
    assert not special.ids_of(" <|end|>")
    assert not special.ids_of("<|begin|> ")


@pytest.mark.parametrize("family", ZOO)
def test_stop_words_a_marker_that_is_left_out_is_named_by_its_text(family: str) -> None:
    marker = _id_of(family, "<think>")
    plain = parse(family, stop_words=[b"<think>"]).first
    assert marker not in plain.stop_ids, "its text is found as text"
    named = parse(family, stop_words=[b"<think>"], marker_ids=[marker]).first
    assert (named.stop_ids, named.stop_id_words) == (frozenset({marker}), {marker: "<think>"})


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(ZOO)), st.data(), st.booleans(), st.booleans())
def test_stop_words_are_matched_in_the_text_without_markers(
    family: str, data: st.DataObject, skip: bool, include_stop: bool
) -> None:
    """As if the markers had never been there."""
    detokenizer, anchors = parts(family)
    ids = data.draw(outputs(family))
    marker_ids = data.draw(st.sets(st.sampled_from(ids), max_size=3)) if ids else set()
    markers = named_tokens(TokenBytes(tokenizer_of(family)), marker_ids)
    others = [token_id for token_id in ids if token_id not in marker_ids]
    text = detokenizer.text((), others, is_last=True, skip_special_tokens=skip) or "a"
    begin = data.draw(st.integers(0, len(text) - 1))
    word = text[begin : begin + data.draw(st.integers(1, 6))]
    assume(not (special_of(family) | markers).is_part_of(word))
    flags: dict[str, Any] = {"include_stop": include_stop, "skip_special_tokens": skip}
    without = StopStrings(detokenizer, anchors, (word,), **flags)
    beside = StopStrings(detokenizer, anchors, (word,), **flags, special=special_of(family), markers=markers)
    assert _run(beside, ids) == _run(without, others)


def _run(stop_strings: StopStrings, ids: list[int]) -> tuple[str | None, int]:
    found = next((word for token_id in ids if (word := stop_strings.append(token_id)) is not None), None)
    return found or stop_strings.finish(), stop_strings.num_characters


@pytest.mark.parametrize("include_stop", [False, True])
def test_stop_words_that_hold_a_marker_are_found_where_it_stands(include_stop: bool) -> None:
    family = "byte_level_bpe"
    marker = _id_of(family, "<think>")
    detokenizer, anchors = parts(family)
    markers = named_tokens(TokenBytes(tokenizer_of(family)), [marker])
    stop_strings = StopStrings(detokenizer, anchors, ("b<think>c",), include_stop=include_stop, markers=markers)
    ids = [*encode(family, "ab"), marker, *encode(family, "cd")]
    assert _run(stop_strings, ids) == ("b<think>c", 3 if include_stop else 1)
    assert _run(StopStrings(detokenizer, anchors, ("b<think>c",), markers=markers), encode(family, "abcd"))[0] is None
