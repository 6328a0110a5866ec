"""The plan of an answer: the guide that constrains it, the markers that are seen in it, and whether it must be read.

Owns what `tool_choice` means for each format, and where reasoning stands. Never sees an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trident_ensemble.contract.client_input import MAX_GUIDE_BYTES
from trident_ensemble.contract.model_card import Marker, ModelCard, Reasoning
from trident_gateway.errors import InvalidRequestError
from trident_gateway.tool_calls.formats import (
    Calls,
    Format,
    const,
    either,
    format_calls,
    json_schema,
    optional,
    regex,
    sequence,
    thought,
)
from trident_gateway.tool_calls.tools import Choice, Tool, ToolChoice, check_tools


@dataclass(frozen=True)
class ToolPlan:
    """The plan of one answer: what is asked of the core for it, and how it is read.

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
        params: JSON pointer of each tool's schema in the guide -> the client's field.
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
    params: Mapping[str, str] = field(default_factory=dict)

    def param_of(self, problem: str) -> str | None:
        """Return the client's field that the core's refusal of the guide is about; None if it is about no tool's."""
        pointer = problem.partition(":")[0]
        return next((param for place, param in self.params.items() if f"{pointer}/".startswith(f"{place}/")), None)

    def finish_reason(self, engine_reason: str, num_calls: int, *, is_open: bool = False) -> str:
        """Return OpenAI's reason for the end of an answer.

        Args:
            engine_reason: the core's `finish_reason`: eos, stop or length.
            num_calls: complete and begun calls that the answer has.
            is_open: the last call is not complete, whatever has cut it: a client must not make it.
        """
        if engine_reason == "length" or is_open:
            return "length"
        return "tool_calls" if num_calls and self.choice is not Choice.NAMED else "stop"


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
    check_tools(tools, choice, param)
    plain = _plain(card, in_prompt)
    if not tools:
        return plain
    if choice.choice is Choice.NONE:
        return replace(plain, banned_ids=_ids(card.tool_markers.values()))
    if card.tool_format is None or not card.takes_tools:
        why = "shows no known form of calls" if card.takes_tools else "takes no tools"
        raise InvalidRequestError(f"The model `{card.name}` cannot call tools: its template {why}.", param="tools")
    called = [tool for tool in tools if choice.choice is not Choice.NAMED or tool.name == choice.name]
    plan = replace(
        plain,
        marker_ids=(*plain.marker_ids, *_ids(card.tool_markers.values())),
        parses=True,
        choice=choice.choice,
        names=frozenset(tool.name for tool in called),
    )
    if not guided:
        return plan
    calls = Calls(
        card.tool_markers,
        called,
        may_be_text=choice.choice is Choice.AUTO,
        parallel=parallel and choice.choice is not Choice.NAMED,
        excludes=() if card.reasoning is None else (card.reasoning.start.text,),
    )
    form = _after_reasoning(card.reasoning, format_calls(card.tool_format, calls), plain.in_reasoning)
    guide = _guide_text(form)
    if len(guide.encode()) > MAX_GUIDE_BYTES:
        raise InvalidRequestError(
            f"The tools' schemas are too large together: they make a grammar of {len(guide.encode())} bytes, and at"
            f" most {MAX_GUIDE_BYTES} can be followed.",
            code="invalid_json_schema",
            param="tools",
        )
    fields = {tool.name: f"{param.format(index)}.parameters" for index, tool in enumerate(tools)}
    pointers = zip(_schema_pointers(form, "#/format"), called, strict=True)
    return replace(
        plan,
        guide_type=_TAG,
        guide=guide,
        params={pointer: fields[tool.name] for pointer, tool in pointers},
    )


def plan_guide(card: ModelCard, guide_type: str, guide: str, *, in_prompt: bool = True) -> ToolPlan:
    """Plan an answer with a guide of its own, such as the schema of `response_format`: it comes after the reasoning.

    Args:
        card: the facts about the model.
        guide_type: `json`, `json_schema`, `regex`, `choice` or `ebnf_grammar`; the last holds for the whole answer.
        guide: as the core takes it; it is not checked here.
        in_prompt: as for `plan_tools`.
    """
    plain = _plain(card, in_prompt)
    form = None if card.reasoning is None else _format_of(guide_type, guide)
    if form is None:
        # Without reasoning, and with a grammar that holds from the first token, all of the answer is content.
        return ToolPlan(guide_type=guide_type, guide=guide)
    form = _after_reasoning(card.reasoning, form, plain.in_reasoning)
    return replace(plain, guide_type=_TAG, guide=_guide_text(form))


def turns_reasoning_off(template_kwargs: Mapping[str, Any]) -> bool:
    """Return whether `chat_template_kwargs` turn reasoning off, by the names that templates have for that."""
    return any(template_kwargs.get(name) is False for name in ("enable_thinking", "thinking"))


def _plain(card: ModelCard, in_prompt: bool) -> ToolPlan:
    """Return the plan of an answer without calls and without a guide."""
    if card.reasoning is None:
        return ToolPlan()
    return ToolPlan(
        marker_ids=_ids((card.reasoning.start, card.reasoning.end)),
        parses=True,
        reasons=True,
        in_reasoning=in_prompt and card.reasoning.starts_in_prompt,
    )


def _after_reasoning(reasoning: Reasoning | None, form: Format, in_reasoning: bool) -> Format:
    """Put the reasoning before a format, where there may be some."""
    if reasoning is None:
        return form
    if in_reasoning:
        return sequence(thought("", reasoning.end.text), form)
    return sequence(optional(thought(reasoning.start.text, reasoning.end.text)), form)


def _format_of(guide_type: str, guide: str) -> Format | None:
    """Return another guide as a format; None for a grammar, which has none, and for what the core will refuse."""
    if guide_type == "regex":
        return regex(guide)
    if guide_type == "json" and not guide.strip():
        return json_schema({"type": ["object", "array"]})
    try:
        value = json.loads(guide)
    except (ValueError, RecursionError):
        return None
    if guide_type == "choice":
        are_texts = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
        return either(*map(const, value)) if are_texts else None
    form = _unwrapped(value) if guide_type in {"json", "json_schema"} else None
    if guide_type == _TAG and isinstance(value, dict):
        form = value.get("format")
        return form if isinstance(form, dict) else None
    return json_schema(form) if isinstance(form, dict) else None


def _unwrapped(value: Any) -> Any:
    """Take a schema out of OpenAI's wrappers, as the core does."""
    if isinstance(value, dict) and value.get("type") == "json_schema" and "json_schema" in value:
        value = value["json_schema"]
    if isinstance(value, dict) and "schema" in value and value.keys() <= _WRAPPER:
        return value["schema"]
    return value


def _guide_text(form: Format) -> str:
    return json.dumps({"type": _TAG, "format": form}, ensure_ascii=False, separators=(",", ":"))


def _schema_pointers(form: Format, place: str) -> Iterator[str]:
    """Yield the JSON pointers of a format's schemas, in order."""
    if form["type"] == "json_schema":
        yield f"{place}/json_schema"
    for key in ("elements", "tags"):
        for index, part in enumerate(form.get(key, ())):
            yield from _schema_pointers(part, f"{place}/{key}/{index}")
    if "content" in form:
        yield from _schema_pointers(form["content"], f"{place}/content")


def _ids(markers: Iterable[Marker]) -> tuple[int, ...]:
    return tuple(marker.token_id for marker in markers if marker.token_id is not None)


_TAG = "structural_tag"
_WRAPPER = frozenset({"name", "description", "schema", "strict", "type"})
