"""The plan of an answer: the guide that constrains it, the markers that are seen in it, and whether it must be read.

Owns what `tool_choice` means for each format, and where reasoning stands. Never sees an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.tool_calls.tools import Choice, Tool, ToolChoice


@dataclass(frozen=True)
class ToolPlan:
    """What is asked of the core for one answer, and how the answer is read.

    Args:
        guide_type: the value of `guided_decoding_guide_type`; None for an answer without a guide.
        guide: the value of `guided_decoding_guide`.
        marker_ids: the value of `marker_ids`: tokens that `AnswerParser` must be told of.
        banned_ids: tokens that must not be generated.
        parses: the text must go through an `AnswerParser`; else all of it is content.
        choice: which tools may be called; `NONE` where there are none.
        names: the names of the tools that may be called.
        reasons: the answer begins with reasoning, or may.
        in_reasoning: it begins inside of reasoning, which the prompt has begun.
    """

    guide_type: str | None = None
    guide: str | None = None
    marker_ids: tuple[int, ...] = ()
    banned_ids: tuple[int, ...] = ()
    parses: bool = False
    choice: Choice = Choice.NONE
    names: frozenset[str] = frozenset()
    reasons: bool = False
    in_reasoning: bool = False

    def finish_reason(self, engine_reason: str, num_calls: int) -> str:
        """Return OpenAI's reason for the end of an answer.

        Args:
            engine_reason: the core's `finish_reason`: eos, stop or length.
            num_calls: complete and begun calls that the answer has.
        """
        raise NotImplementedError


def plan_tools(
    card: ModelCard,
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    parallel: bool = True,
    in_prompt: bool = True,
    guided: bool = True,
    param: str = "tools[{}].function",
) -> ToolPlan:
    """Plan an answer that may call tools; without tools, or with `NONE`, only its reasoning is told apart.

    Args:
        card: the facts about the model.
        tools: what the request offers.
        choice: what it wants called.
        parallel: more than one call is allowed.
        in_prompt: the prompt ends where the template lets an answer begin, with reasoning that the template may have
            begun. False where an earlier answer is continued, or the request has turned reasoning off.
        guided: calls are held to the tools' schemas. False relaxes that: nothing then makes a call valid.
        param: the path of a tool's fields in errors; its braces become the tool's index.

    Raises:
        InvalidRequestError: names the tool's field or `tool_choice`.
    """
    raise NotImplementedError


def plan_guide(card: ModelCard, guide_type: str, guide: str, *, in_prompt: bool = True) -> ToolPlan:
    """Plan an answer with a guide of its own, such as the schema of `response_format`: it comes after the reasoning.

    Args:
        card: the facts about the model.
        guide_type: `json`, `json_schema`, `regex`, `choice` or `ebnf_grammar`; the last holds for the whole answer.
        guide: as the core takes it; it is not checked here.
        in_prompt: as for `plan_tools`.
    """
    raise NotImplementedError


def turns_reasoning_off(template_kwargs: Mapping[str, Any]) -> bool:
    """Return whether `chat_template_kwargs` turn reasoning off, by the names that templates have for that."""
    return any(template_kwargs.get(name) is False for name in ("enable_thinking", "thinking"))
