"""The answers to one prompt while they come: one event model for streams and for whole answers.

Owns the state of each answer. Both ways of answering read the same deltas, so that they cannot differ. Never writes
JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.api.rows import Row, TokenScores
from trident_gateway.api.usage import ReasoningMeter
from trident_gateway.errors import EngineFaultError
from trident_gateway.tool_calls.answer_parser import AnswerEvent, AnswerParser, ContentDelta, ReasoningDelta
from trident_gateway.tool_calls.guides import ToolPlan

_FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True)
class AnswerPlan:
    """The plan by which the answers to a request are read.

    Args:
        card: the facts about the model.
        tools: the plan of tool calls and reasoning.
    """

    card: ModelCard
    tools: ToolPlan


@dataclass(slots=True)
class Delta:
    """The part that one response has added to one answer.

    Args:
        index: of the answer.
        events: content, reasoning and calls, in order.
        scores: of the tokens, where they were asked for.
        finish_reason: OpenAI's; "" if the answer goes on.
    """

    index: int
    events: Sequence[AnswerEvent]
    scores: Sequence[TokenScores] = ()
    finish_reason: str = ""


class Choice:
    """One answer while it comes.

    Args:
        index: among the answers to the prompt.
        plan: how it is read.
    """

    def __init__(self, index: int, plan: AnswerPlan) -> None:
        self.index = index
        self.finish_reason = ""
        self._tools = plan.tools
        self._parser = AnswerParser(plan.card, plan.tools) if plan.tools.parses else None
        reasoning = plan.card.reasoning if plan.tools.reasons else None
        self._meter = ReasoningMeter(reasoning, has_begun=plan.tools.in_reasoning) if reasoning else None

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens of reasoning so far; None for an answer that has none."""
        return self._meter.num_tokens if self._meter else None

    def read(self, row: Row) -> Delta:
        """Take the next response of this answer.

        Raises:
            EngineFaultError: the core ended it for a reason that no client may see.
        """
        events = self._events(row)
        if row.finish_reason:
            if self._parser is not None:
                events = [*events, *self._parser.finish()]
            self.finish_reason = self._reason(row.finish_reason)
        if self._meter is not None:
            self._meter.count(list(row.token_ids))
            for event in events:
                if isinstance(event, ContentDelta | ReasoningDelta):
                    self._meter.read(event.text, is_reasoning=isinstance(event, ReasoningDelta))
        return Delta(self.index, events, row.scores, self.finish_reason)

    def _events(self, row: Row) -> Sequence[AnswerEvent]:
        if self._parser is not None:
            return self._parser.feed(row.text, row.markers)
        return (ContentDelta(row.text),) if row.text else ()

    def _reason(self, engine_reason: str) -> str:
        if engine_reason not in _FINISH_REASONS:
            raise EngineFaultError
        if self._parser is None:
            return _FINISH_REASONS[engine_reason]
        return self._tools.finish_reason(engine_reason, self._parser.num_calls, is_open=self._parser.is_open)
