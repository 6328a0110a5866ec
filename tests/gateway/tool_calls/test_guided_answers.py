"""Plans and parser together, by the grammars themselves: whatever the masks allow is read as valid calls."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tokenizers import AddedToken, Tokenizer

from tests.fakes.guides import NO_TEXT, guides_for, seeded, write
from tests.gateway.tool_calls.models import CARDS, QWEN3, QWQ, SPELLED, joined
from tests.gateway.tool_calls.random_tools import is_call, random_tool
from tests.tokenizer_zoo import byte_level_bpe
from trident_backend.guided.compiler import GrammarCompiler
from trident_ensemble.contract.model_card import Marker, ModelCard, Reasoning
from trident_gateway.tool_calls.answer_parser import AnswerParser
from trident_gateway.tool_calls.guides import ToolPlan, plan_guide, plan_tools
from trident_gateway.tool_calls.tools import Choice, ToolChoice

pytestmark = pytest.mark.slow

_CONTROL = ("<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
_OTHERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


class Model:
    """A tokenizer with the markers of all formats or without them, and what it writes under a plan."""

    def __init__(self, folder: Path, *, has_markers: bool) -> None:
        self.tokenizer: Tokenizer = byte_level_bpe()
        if has_markers:
            self.tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _CONTROL])
            self.tokenizer.add_tokens([AddedToken(text, special=False) for text in _OTHERS])
        self.guides: GrammarCompiler = guides_for(self.tokenizer, folder)
        self.closers = frozenset(
            token
            for text in (*_CONTROL, *_OTHERS, *'}]",:1')
            if (token := self.tokenizer.token_to_id(text)) is not None
        )

    def card(self, card: ModelCard) -> ModelCard:
        """A card with the ids of this tokenizer, where it has any."""

        def real(marker: Marker) -> Marker:
            return marker if marker.token_id is None else Marker(marker.text, self.tokenizer.token_to_id(marker.text))

        reasoning = card.reasoning
        if reasoning is not None:
            reasoning = Reasoning(real(reasoning.start), real(reasoning.end), reasoning.starts_in_prompt)
        return replace(
            card,
            tool_markers={role: real(marker) for role, marker in card.tool_markers.items()},
            reasoning=reasoning,
        )

    def answer(self, plan: ToolPlan, rng: random.Random) -> tuple[list[int], bool]:
        """Random tokens of an answer, and whether it has come to its end."""
        assert plan.guide_type is not None
        assert plan.guide is not None
        guide = self.guides.compile(plan.guide_type, plan.guide).start(frozenset({NO_TEXT}))
        return write(guide, rng, end_id=NO_TEXT, closers=self.closers, most=400)

    def read(self, card: ModelCard, plan: ToolPlan, token_ids: list[int]) -> tuple[str, str, list[tuple[str, str]]]:
        """What is read of these tokens, each of them by itself."""
        parser = AnswerParser(card, plan)
        texts = self.guides._read().vocabulary.texts
        events, pending = [], b""
        for token_id in token_ids:
            if token_id in plan.marker_ids:
                assert not pending, "a marker in the middle of a character"
                events += parser.feed("", [(0, token_id)])
                continue
            pending += texts[token_id]
            try:
                text, pending = pending.decode(), b""
            except UnicodeDecodeError:
                continue
            events += parser.feed(text)
        return joined([*events, *parser.finish()])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One tokenizer for all formats whose markers are tokens."""
    return Model(tmp_path_factory.mktemp("guided"), has_markers=True)


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One that spells them."""
    return Model(tmp_path_factory.mktemp("spelling"), has_markers=False)


@pytest.mark.parametrize("choice", [Choice.AUTO, Choice.REQUIRED, Choice.NAMED])
@pytest.mark.parametrize("name", CARDS)
def test_guided_answers_are_valid_calls(model: Model, spelling: Model, name: str, choice: Choice) -> None:
    """Of each format and choice, with random tools: valid calls, as many as may be, and text where it may be."""
    has_tokens = any(marker.token_id is not None for marker in CARDS[name].tool_markers.values())
    model = model if has_tokens else spelling
    card = model.card(CARDS[name])
    num_complete = num_called = 0
    for seed in range(6):
        rng = seeded(seed)
        tools = tuple(random_tool(rng, number) for number in range(rng.randint(1, 4)))
        parallel = seed % 2 == 0
        wanted = ToolChoice(choice, tools[0].name if choice is Choice.NAMED else "")
        plan = plan_tools(card, tools, wanted, parallel=parallel)
        token_ids, is_complete = model.answer(plan, rng)
        content, reasoning, calls = model.read(card, plan, token_ids)
        assert card.reasoning is not None or not reasoning
        complete = calls if is_complete else calls[:-1]
        assert all(is_call(tools, *call) for call in complete), (calls, content)
        num_complete += is_complete
        num_called += bool(complete)
        if choice is not Choice.AUTO:
            assert not content
            assert calls or not is_complete
        if choice is Choice.NAMED:
            assert {called for called, _ in calls} <= {tools[0].name}
        if not parallel or choice is Choice.NAMED:
            assert len(calls) <= 1
    # A random text spells no marker.
    assert num_complete > 2 or not has_tokens
    assert num_called > 0 or (choice is Choice.AUTO and not has_tokens)


@pytest.mark.parametrize("card", [QWEN3, QWQ, SPELLED], ids=["qwen3", "qwq", "spelled"])
@pytest.mark.parametrize(
    ("kind", "guide"),
    [
        ("json_schema", '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'),
        ("json_schema", '{"name": "n", "schema": {"type": "object", "maxProperties": 0}}'),
        ("json", ""),
        ("regex", "[0-9]{2,4}"),
        ("choice", '["yes", "no"]'),
        ("structural_tag", '{"type": "structural_tag", "format": {"type": "const_string", "value": "ok"}}'),
    ],
)
def test_guided_answers_come_after_the_reasoning(
    model: Model, spelling: Model, card: ModelCard, kind: str, guide: str
) -> None:
    """The reasoning is free, what follows is held to the guide."""
    has_tokens, always_reasons = card is not SPELLED, card is QWQ
    model = model if has_tokens else spelling
    card = model.card(card)
    plan = plan_guide(card, kind, guide)
    reasoned = complete = 0
    for seed in range(6):
        token_ids, is_complete = model.answer(plan, seeded(seed))
        content, reasoning, calls = model.read(card, plan, token_ids)
        reasoned += bool(reasoning)
        complete += is_complete
        assert not calls
        assert not is_complete or _fits(kind, guide, content), (content, reasoning, token_ids)
    assert complete > 2 or not has_tokens
    assert reasoned > 0 or not always_reasons


def _fits(kind: str, guide: str, content: str) -> bool:
    if kind == "regex":
        return re.fullmatch(guide, content) is not None
    if kind == "choice":
        return content in json.loads(guide)
    if kind == "structural_tag":
        return content == "ok"
    schema: Any = json.loads(guide) if guide else {"type": ["object", "array"]}
    return bool(jsonschema.Draft202012Validator(schema.get("schema", schema)).is_valid(json.loads(content)))


def test_guided_answers_without_reasoning_have_the_guide_as_it_is() -> None:
    """Nothing is wrapped where nothing comes before."""
    plan = plan_guide(CARDS["hermes"], "regex", "a+")
    assert plan == ToolPlan("regex", "a+")
    assert plan_guide(QWEN3, "ebnf_grammar", 'root ::= "a"').guide_type == "ebnf_grammar"
