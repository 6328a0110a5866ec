"""What is asked of the core for each request with tools, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.gateway.tool_calls.models import CARDS, HERMES, LLAMA_TAGGED, QWEN3, QWQ, TIME, TOOLS, WEATHER, tokens_of
from trident_gateway.errors import InvalidRequestError
from trident_gateway.tool_calls.guides import ToolPlan, plan_guide, plan_tools, turns_reasoning_off
from trident_gateway.tool_calls.tools import Choice, Tool, ToolChoice


def test_plan_without_tools_and_reasoning_leaves_the_text_alone() -> None:
    """Nothing is read, nothing is asked for."""
    assert plan_tools(HERMES, (), ToolChoice()) == ToolPlan()


def test_plan_without_tools_reads_the_reasoning() -> None:
    """Its markers are asked for, and nothing constrains the answer."""
    plan = plan_tools(QWEN3, (), ToolChoice())
    assert (plan.guide, plan.marker_ids, plan.parses, plan.reasons, plan.in_reasoning) == (
        None, (101, 102), True, True, False,
    )  # fmt: skip
    assert plan_tools(QWQ, (), ToolChoice()).in_reasoning
    assert not plan_tools(QWQ, (), ToolChoice(), in_prompt=False).in_reasoning


@pytest.mark.parametrize("name", CARDS)
def test_plan_of_none_bans_the_markers_that_are_tokens(name: str) -> None:
    """The tools stay in the prompt, and none is called."""
    card = CARDS[name]
    plan = plan_tools(card, TOOLS, ToolChoice(Choice.NONE))
    reasoning = {101, 102} if card.reasoning and card.reasoning.start.token_id else set()
    assert set(plan.banned_ids) == set(tokens_of(card).values()) - reasoning
    assert plan.guide is None
    assert not plan.names


def test_plan_may_do_without_a_grammar() -> None:
    """Calls are read all the same."""
    plan = plan_tools(HERMES, TOOLS, ToolChoice(), guided=False)
    assert (plan.guide, plan.parses, plan.names) == (None, True, frozenset({"get_weather", "get-time"}))


def test_plan_closes_the_arguments_of_a_tool_without_parameters() -> None:
    """They are the empty object; a schema without a type is one of an object."""
    text = plan_tools(HERMES, (TIME, Tool("x", {"properties": {}})), ToolChoice()).guide or ""
    assert '{"type":"object","properties":{},"additionalProperties":false}' in text
    assert '{"type":"object","properties":{}}' in text


def test_plan_names_the_field_of_a_schema_that_the_core_refuses() -> None:
    """By the JSON pointer with which the core's text begins."""
    for choice in (ToolChoice(), ToolChoice(Choice.REQUIRED), ToolChoice(Choice.NAMED, "get-time")):
        for card in CARDS.values():
            plan = plan_tools(card, TOOLS, choice)
            guide = json.loads(plan.guide or "")
            for pointer, param in plan.params.items():
                node: Any = guide
                for key in pointer.split("/")[1:]:
                    node = node[int(key) if isinstance(node, list) else key]
                index = int(param.removeprefix("tools[").partition("]")[0])
                assert param == f"tools[{index}].function.parameters"
                assert node == {"type": "object", **(TOOLS[index].parameters or _EMPTY)}
                assert plan.param_of(f"{pointer}/properties/x: cannot be followed") == param
                assert plan.param_of(f"{pointer}: cannot be followed") == param
            assert plan.param_of("#/format: is not known") is None
            assert len(plan.params) == (1 if choice.choice is Choice.NAMED else 2)


_EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("tools", "choice", "param", "text"),
    [
        ((Tool("a b"),), ToolChoice(), "tools[0].function.name", "letters, digits"),
        ((Tool(""),), ToolChoice(), "tools[0].function.name", "1 to 64"),
        ((Tool("x" * 65),), ToolChoice(), "tools[0].function.name", "1 to 64"),
        ((Tool("a\n"),), ToolChoice(), "tools[0].function.name", "1 to 64"),
        ((TIME, WEATHER, TIME), ToolChoice(), "tools[2].function.name", "same name"),
        ((Tool("x", {"type": "string"}),), ToolChoice(), "tools[0].function.parameters", "object"),
        (tuple(Tool(f"t{n}") for n in range(129)), ToolChoice(), "tools", "at most 128"),
        (TOOLS, ToolChoice(Choice.NAMED, "other"), "tool_choice", "no tool"),
        ((), ToolChoice(Choice.REQUIRED), "tool_choice", "has none"),
        ((Tool("x", {"type": "object", "description": "x" * 300_000}),), ToolChoice(), "tools", "too large"),
    ],
)
def test_plan_refuses_by_name(tools: tuple[Tool, ...], choice: ToolChoice, param: str, text: str) -> None:
    """What cannot be offered is refused before anything is asked of a server."""
    with pytest.raises(InvalidRequestError, match=text) as raised:
        plan_tools(HERMES, tools, choice)
    assert raised.value.param == param


def test_plan_refuses_tools_where_calls_cannot_be_read() -> None:
    """A model whose template shows no known format, or takes no tools."""
    for card in (replace(HERMES, tool_format=None), replace(HERMES, takes_tools=False)):
        with pytest.raises(InvalidRequestError, match="cannot call tools") as raised:
            plan_tools(card, TOOLS, ToolChoice())
        assert raised.value.param == "tools"
        assert plan_tools(card, TOOLS, ToolChoice(Choice.NONE)).guide is None


def test_plan_takes_as_many_tools_as_may_be() -> None:
    """With the longest names."""
    tools = tuple(Tool(f"{'x' * 60}{n:04}", WEATHER.parameters) for n in range(128))
    assert len(plan_tools(LLAMA_TAGGED, tools, ToolChoice()).params) == 128


def test_plan_leaves_a_wrong_guide_for_the_core_to_refuse() -> None:
    """It says what is wrong, in the words that it has without reasoning."""
    for kind, guide in (("json_schema", "{"), ("choice", "7"), ("choice", "[]"), ("json_schema", "[1]")):
        assert plan_guide(QWEN3, kind, guide) == ToolPlan(kind, guide)


def test_turns_reasoning_off_by_the_names_that_templates_have() -> None:
    """Only the value false does."""
    assert turns_reasoning_off({"enable_thinking": False})
    assert turns_reasoning_off({"thinking": False})
    assert not turns_reasoning_off({"enable_thinking": True})
    assert not turns_reasoning_off({"enable_thinking": None})
