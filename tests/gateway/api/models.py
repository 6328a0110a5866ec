"""Models with tools and reasoning, for the tests of endpoints."""

from __future__ import annotations

from dataclasses import replace

from tests.fakes.gateway_upstream import CARD, MODEL
from trident_ensemble.contract.model_card import Marker, Reasoning, ToolFormat

START, END, THINK, THOUGHT = 3, 4, 5, 6

TOOL_CARD = replace(
    CARD,
    takes_tools=True,
    tool_format=ToolFormat.HERMES,
    tool_markers={"start": Marker("<tool_call>", START), "end": Marker("</tool_call>", END)},
)
TOOL_MODEL = replace(MODEL, card=TOOL_CARD)
#: Calls tools, and reasons before it answers.
THINKING_MODEL = replace(
    MODEL,
    card=replace(TOOL_CARD, reasoning=Reasoning(Marker("<think>", THINK), Marker("</think>", THOUGHT))),
)
