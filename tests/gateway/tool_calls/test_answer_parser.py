"""The reading of answers: every format, cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.tool_calls.models import (
    CARDS,
    HERMES,
    LLAMA,
    LLAMA_TAGGED,
    MISTRAL,
    MISTRAL_NAMED,
    QWEN3,
    QWQ,
    SPELLED,
    TIME,
    TOOLS,
    WEATHER,
    joined,
    pieces,
    written,
)
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.tool_calls.answer_events import ContentDelta, ToolCallStart
from trident_gateway.tool_calls.answer_parser import AnswerParser, new_call_id
from trident_gateway.tool_calls.guides import ToolPlan, plan_tools
from trident_gateway.tool_calls.tools import Choice, ToolChoice

Answer = tuple[str, str, list[tuple[str, str]]]


def plan_of(card: ModelCard, *, guided: bool = True, in_prompt: bool = True) -> ToolPlan:
    """The plan of an answer that may call both tools."""
    return plan_tools(card, TOOLS, ToolChoice(), guided=guided, in_prompt=in_prompt)


def read(card: ModelCard, answer: str, cuts: Sequence[int] = (), *, guided: bool = False) -> Answer:
    """What is read of an answer that comes in parts."""
    parser = AnswerParser(card, plan_of(card, guided=guided))
    events = [event for text, markers in pieces(card, answer, cuts) for event in parser.feed(text, markers)]
    events += parser.finish()
    content, reasoning, calls = joined(events)
    assert parser.num_calls == len(calls)
    return content, reasoning, calls


_ARGUMENTS = (
    "{}",
    '{"city": "Paris"}',
    '{"a": {"b": [1, {"c": "}]"}]}, "q": "\\"}\\\\"}',
    '{"emoji": "\\ud83d\\ude00 😀 日本", "tag": "</tool_call> [TOOL_CALLS] <tool_call>"}',
    '{ "x" :\n\t[ ] }',
)
_PROSE = st.sampled_from(["", "Let me see.", "a <b> {x}", "<tool", 'say "hi"', "1 < 2", "日本", "[TOOL", "{"])


@st.composite
def answers(draw: st.DrawFn, card: ModelCard) -> tuple[str, Answer]:
    """An answer of a card, and what is in it."""
    calls = draw(
        st.lists(st.tuples(st.sampled_from(["get_weather", "get-time"]), st.sampled_from(_ARGUMENTS)), max_size=3)
    )
    is_bare = card in (LLAMA, LLAMA_TAGGED)
    calls = calls[:1] if is_bare else calls
    if any(marker.token_id is None for marker in card.tool_markers.values()) and draw(st.booleans()):
        calls = calls[:1]
    content = "" if is_bare and calls else draw(_PROSE)
    reasoning = draw(st.sampled_from(["", "hm", "so <tool_call> is a marker.\n\nYes", "a < b"]))
    text, thought = content, ""
    for at, (name, arguments) in enumerate(calls):
        text += ("\n\n" if content and not at else "") + written(
            card, name, arguments, is_first=not at, is_last=at == len(calls) - 1
        )
    if card.reasoning is not None:
        begin = "" if card.reasoning.starts_in_prompt else "<think>"
        if card is not QWEN3:
            reasoning = reasoning.replace("<tool_call>", "<tool>")
        # A card with tokens reads a spelling in the reasoning as text; the test's answers spell tokens alone.
        reasoning = reasoning.replace("<tool_call>", "<tool>")
        if reasoning or begin == "":
            text, thought = f"{begin}\n{reasoning}\n</think>\n\n{text}", reasoning
    return text, (content, thought, calls)


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_answer_parser_reads_the_same_however_it_is_cut(name: str, data: st.DataObject) -> None:
    """Whole, in parts, and character by character: the same content, reasoning and calls, byte by byte."""
    card = CARDS[name]
    answer, expected = data.draw(answers(card))
    arguments = "".join(arguments for _, arguments in expected[2])
    if any(text in arguments for text in _tokens(card)):
        # Tokens do not stand in arguments; their spellings do.
        return
    cuts = data.draw(st.lists(st.integers(0, max(1, len(answer))), max_size=8))
    for guided in (True, False):
        assert read(card, answer, guided=guided) == expected
        assert read(card, answer, cuts, guided=guided) == expected
        assert read(card, answer, range(len(answer)), guided=guided) == expected


def _tokens(card: ModelCard) -> list[str]:
    return [marker.text for marker in card.tool_markers.values() if marker.token_id is not None]


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_answer_parser_loses_no_text_of_any_answer(name: str, data: st.DataObject) -> None:
    """Whatever a model writes without a guide, each cutting reads the same, and no character but blanks is lost."""
    card = CARDS[name]
    parts = [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>", "<|python_tag|>", "get_weather",
        '{"name": "get_weather", "arguments": {"a": 1}}', '{"name": "get-time", "parameters": {}}', "[", "]", ",", " ",
        "\n", '{"name"', '"', "{", "}", "x", "<", "tool_call>", "abc123abc",
        '{"name": "get-time", "arguments": {}', ',"extra": "x"', ', "id": "abc123abc"',
    ]  # fmt: skip
    answer = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=12)))
    cuts = data.draw(st.lists(st.integers(0, max(1, len(answer))), max_size=8))
    whole = read(card, answer)
    assert read(card, answer, cuts) == whole
    assert read(card, answer, range(len(answer))) == whole
    content, reasoning, calls = whole
    if not calls and not reasoning and card.reasoning is None:
        assert "".join(content.split()) == "".join(answer.split())


@pytest.mark.parametrize("name", CARDS)
def test_answer_parser_gives_the_open_call_of_a_cut_answer(name: str) -> None:
    """Cut after every character: what was complete, and the open call's arguments so far."""
    card = CARDS[name]
    arguments = '{"city": "P\\u00e4ris", "n": [1, {}]}'
    thought = "<think>hm</think>" if card is QWEN3 else "hm</think>" if card is QWQ else ""
    text = thought + written(card, "get_weather", arguments)
    begin = text.index(arguments)
    for cut in range(len(text) + 1):
        answer = text[:cut]
        if any(answer.endswith(token[:length]) for token in _all_tokens(card) for length in range(1, len(token))):
            # A token is there or not.
            continue
        content, _, calls = read(card, answer, range(cut), guided=True)
        if cut <= begin:
            assert not calls
            assert content in text
        else:
            assert calls == [("get_weather", arguments[: cut - begin])]
            assert not content


def _all_tokens(card: ModelCard) -> list[str]:
    return [*_tokens(card), *(["<think>", "</think>"] if card in (QWEN3, QWQ) else [])]


def test_answer_parser_takes_spellings_of_tokens_for_text() -> None:
    """Where markers are tokens, prose may speak of them."""
    parser = AnswerParser(HERMES, plan_of(HERMES))
    said = 'The marker <tool_call> begins {"name": "get_weather", "arguments": {}} </tool_call>.'
    events = [*parser.feed(said), *parser.finish()]
    assert joined(events) == (said, "", [])


def test_answer_parser_streams_arguments_as_they_come() -> None:
    """Each part of the arguments leaves with the text that brings it; so does content, but for blanks."""
    parser = AnswerParser(HERMES, plan_of(HERMES), lambda: "id")
    assert parser.feed("Hi ") == [ContentDelta("Hi")]
    assert parser.feed("you") == [ContentDelta(" you")]
    assert parser.feed('{"name": "get_weather", "arguments"', [(0, 1)]) == []
    assert parser.feed(": ") == []
    assert joined(parser.feed("{"))[2:] == ([("get_weather", "{")],)
    assert [event.arguments for event in parser.feed('"ci')] == ['"ci']  # type: ignore[union-attr]
    assert [event.arguments for event in parser.feed('ty": "x"}}')] == ['ty": "x"}']  # type: ignore[union-attr]
    assert parser.feed("", [(0, 2)]) == []
    assert parser.finish() == []


def test_answer_parser_holds_spelled_markers_back_only_as_far_as_needed() -> None:
    """Text that cannot become a marker any more leaves at once."""
    parser = AnswerParser(SPELLED, plan_of(SPELLED))
    assert parser.feed("a <tool") == [ContentDelta("a")]
    assert parser.feed("s>") == [ContentDelta(" <tools>")]
    assert parser.feed("<tool_call>") == []
    assert parser.feed("none") == [ContentDelta("<tool_call>none")]


@pytest.mark.parametrize(
    ("card", "answer"),
    [
        (HERMES, "<tool_call> no call </tool_call> at all"),
        (HERMES, '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": "text"}\n</tool_call>'),
        (SPELLED, "see <tool_call>: a marker"),
        (SPELLED, '<tool_call>{"name": "get_weather"'),
        (LLAMA, '{"name": "Bob", "age": 3}'),
        (LLAMA, '{"answer": 42}'),
        (LLAMA_TAGGED, '<|python_tag|>print("x")'),
        (MISTRAL, "[TOOL_CALLS] [] and [TOOL_CALLS] none"),
        (MISTRAL_NAMED, "[TOOL_CALLS]unknown[ARGS]{}"),
        (MISTRAL_NAMED, "[TOOL_CALLS]get_weather {}"),
    ],
)
def test_answer_parser_leaves_markers_without_a_call_in_the_text(card: ModelCard, answer: str) -> None:
    """Nothing is dropped, and nothing invented."""
    for cuts in ((), range(len(answer))):
        assert read(card, answer, cuts) == (answer, "", [])


@pytest.mark.parametrize(
    ("rest", "content"),
    [
        ("}", ""),
        (' , "id" : "abc123abc"\n}', ""),
        (',"extra":"x"}', ',"extra":"x"'),
        (' , "extra": ["}", {"a": 1}] }', ', "extra": ["}", {"a": 1}]'),
        (', "id": "abc123abc", "type": "function"}', ', "type": "function"'),
        (', "id": "a b"}', ', "id": "a b"'),
        (', "id"', ', "id"'),
        (" and so on, \n for ever ", "and so on, \n for ever"),
    ],
)
def test_answer_parser_says_what_a_call_has_beside_its_parts(rest: str, content: str) -> None:
    """It is content behind the call, without the closing brace; Mistral's id is a part of the call."""
    for card, begin, end in (
        (HERMES, "<tool_call>\n", "\n</tool_call>"), (SPELLED, "<tool_call>", ""), (MISTRAL, "[TOOL_CALLS][", ""),
        (LLAMA, "", ""),
    ):  # fmt: skip
        answer = f'{begin}{{"name": "get-time", "arguments": {{}}{rest}{end}'
        for cuts in ((), range(len(answer))):
            assert read(card, answer, cuts) == (content, "", [("get-time", "{}")])


def test_answer_parser_reads_the_calls_after_one_that_never_closes() -> None:
    """Its rest is content, and the next marker begins a call."""
    answer = '<tool_call>{"name": "get-time", "arguments": {}, oh' + written(HERMES, "get_weather", "{}")
    assert read(HERMES, answer) == (", oh", "", [("get-time", "{}"), ("get_weather", "{}")])


@pytest.mark.parametrize("guided", [True, False])
def test_answer_parser_knows_whether_the_last_call_is_complete(guided: bool) -> None:
    """It is from the end of its arguments on; a call that is left out for its cut beginning is not."""
    text = written(HERMES, "get-time", "{}") + written(HERMES, "get_weather", '{"city": "Paris"}')
    second, begin, end = text.rindex("<tool_call>"), text.rindex('{"city'), text.rindex('"}') + 2
    for cut in range(second, len(text) + 1):
        if any(text[:cut].endswith(token[:length]) for token in _tokens(HERMES) for length in range(1, len(token))):
            continue
        parser = AnswerParser(HERMES, plan_of(HERMES, guided=guided))
        for piece in pieces(HERMES, text[:cut]):
            parser.feed(*piece)
        parser.finish()
        left_out = guided and second + len("<tool_call>") <= cut <= begin
        assert parser.is_open is (left_out or begin < cut < end), text[:cut]


def test_answer_parser_goes_on_after_what_was_no_call() -> None:
    """A call after a marker without one is read."""
    answer = "<tool_call>oops " + written(HERMES, "get-time", "{}")
    assert read(HERMES, answer) == ("<tool_call>oops", "", [("get-time", "{}")])


def test_answer_parser_reads_reasoning_that_the_prompt_has_begun() -> None:
    """The answer begins inside, unless an earlier answer is continued."""
    assert read(QWQ, "because\n</think>\n\nYes.") == ("Yes.", "because", [])
    plan = plan_of(QWQ, in_prompt=False)
    parser = AnswerParser(QWQ, plan)
    assert not parser.in_reasoning
    assert joined([*parser.feed("Yes."), *parser.finish()]) == ("Yes.", "", [])


def test_answer_parser_says_whether_it_is_in_reasoning() -> None:
    """For the count of reasoning tokens."""
    parser = AnswerParser(QWEN3, plan_tools(QWEN3, (), ToolChoice()))
    assert not parser.in_reasoning
    parser.feed("", [(0, 101)])
    assert parser.in_reasoning
    parser.feed("hm", [(2, 102)])
    assert not parser.in_reasoning


def test_answer_parser_without_calls_passes_text_at_once() -> None:
    """With no tools nothing is held but what may be a marker of reasoning."""
    parser = AnswerParser(QWEN3, plan_tools(QWEN3, (), ToolChoice()))
    assert parser.feed("a \n") == [ContentDelta("a \n")]


def test_answer_parser_draws_the_ids_of_calls() -> None:
    """By the given generator, once a call."""
    ids = iter(["one", "two"])
    parser = AnswerParser(HERMES, plan_of(HERMES), lambda: next(ids))
    text = written(HERMES, "get-time", "{}") + written(HERMES, "get-time", "{}")
    events = [event for piece in pieces(HERMES, text) for event in parser.feed(*piece)]
    assert [event.id for event in events if isinstance(event, ToolCallStart)] == ["one", "two"]


def test_call_ids_have_the_form_that_templates_take() -> None:
    """Mistral's templates insist on nine letters and digits."""
    assert len(new_call_id(MISTRAL.tool_format)) == 9
    assert new_call_id(MISTRAL.tool_format).isalnum()
    assert new_call_id(HERMES.tool_format).startswith("call_")
    assert len({new_call_id(None) for _ in range(100)}) == 100


def test_finish_reason_tells_calls_from_text() -> None:
    """`auto` and `required` end in `tool_calls`, a named tool in `stop`, a cut answer or call in `length`."""
    auto = plan_tools(HERMES, TOOLS, ToolChoice())
    named = plan_tools(HERMES, TOOLS, ToolChoice(Choice.NAMED, TIME.name))
    assert auto.finish_reason("eos", 1) == "tool_calls"
    assert auto.finish_reason("eos", 0) == "stop"
    assert auto.finish_reason("length", 1) == "length"
    assert named.finish_reason("stop", 1) == "stop"
    assert auto.finish_reason("stop", 1, is_open=True) == named.finish_reason("eos", 1, is_open=True) == "length"
    assert json.loads(named.guide or "")["type"] == "structural_tag"
    assert WEATHER.name not in (named.guide or "")
