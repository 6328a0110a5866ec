"""What tool calls cost: the grammars of structural tags on Mistral's tekken (131072 tokens), and the parser.

For 1, 20 and 128 tools, with markers that are tokens and with spelled ones: compiling, the masks of free text and of a
call; and what the gateway's parser takes for a part of an answer. All is CPU time of one thread.

    python -m tests.benchmarks.tool_calls
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.gateway.tool_calls.models import HERMES, MISTRAL_NAMED, QWEN3, written
from tests.mistral_tokenizers import RealTokenizer, mistral_tekken
from trident_backend.guided.compiler import CompiledGrammar, max_items
from trident_backend.guided.grammars import lark_grammar
from trident_backend.guided.memory import GuideMemory
from trident_backend.guided.vocabulary import TokenizerInfo, vocabulary_of
from trident_backend.sequences.guide import MASK_WORD
from trident_ensemble.contract.model_card import Marker, ModelCard
from trident_gateway.tool_calls.answer_parser import AnswerParser
from trident_gateway.tool_calls.guides import plan_tools
from trident_gateway.tool_calls.tools import Tool, ToolChoice
from trident_tools.load.option_values import whole_number

_SIZE = 131072
_PROSE = 'Let me look at the weather for you, "ok"?\nIt is <b>fine</b>, said the man (in 日本) who knew.\n' * 4
_ARGUMENTS = '{"city": "Paris is (nice), I think", "days": 12, "unit": "metric"}'


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tool_calls", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=5)
    args = parser.parse_args()
    console = Console()
    _grammars(console, args.rounds)
    _parser(console, args.rounds)


def _grammars(console: Console, rounds: int) -> None:
    tekken = mistral_tekken()
    info = TokenizerInfo(vocabulary_of(tekken.tokenizer, _SIZE))
    tokens = {
        role: Marker(text, tekken.tokenizer.token_to_id(text))
        for role, text in {"start": "[TOOL_CALLS]", "arguments": "<SPECIAL_20>"}.items()
    }
    cards = {"tokens": replace(MISTRAL_NAMED, tool_markers=tokens), "spelled": _spelled(HERMES)}
    table = Table(
        "markers", "tools", "compile ms", "text us p50", "p99", "max", "call us p50", "p99", "max", title="tekken"
    )
    for markers, card in cards.items():
        for num_tools in (1, 20, 128):
            plan = plan_tools(card, _tools(num_tools), ToolChoice())
            compiling: list[float] = []
            texts: list[float] = []
            calls: list[float] = []
            for _ in range(rounds):
                began = time.thread_time()
                grammar = lark_grammar("structural_tag", plan.guide or "", info.vocabulary.added)
                compiled = CompiledGrammar(info, grammar, max_items("structural_tag"), GuideMemory(1 << 30).take)
                compiling.append(time.thread_time() - began)
                guide = compiled.start(frozenset({2}))
                masks = np.zeros((1, -(-_SIZE // MASK_WORD)), np.uint32)
                call = written(card, "tool_0", _ARGUMENTS)
                for ids, seconds in ((_ids(tekken, card, _PROSE), texts), (_ids(tekken, card, call), calls)):
                    for token_id in ids:
                        began = time.thread_time()
                        guide.fill((), masks)
                        seconds.append(time.thread_time() - began)
                        guide.advance(token_id)
                assert guide.failure is None
            table.add_row(
                markers, str(num_tools), f"{np.median(compiling) * 1e3:.1f}", *_micros(texts), *_micros(calls)
            )
    console.print(table)


def _parser(console: Console, rounds: int) -> None:
    table = Table("answer", "parts", "us a part", title="the parser, a token of four characters a part")
    plan = plan_tools(QWEN3, _tools(4), ToolChoice())
    for what, text in {"content": _PROSE * 10, "arguments": '{"a": "' + _PROSE.replace('"', "'") * 10}.items():
        if what == "arguments":
            text = f'{{"name": "tool_0", "arguments": {text}'  # noqa: PLW2901 (what comes before belongs to it)
        parts = [text[at : at + 4] for at in range(0, len(text), 4)]
        best = float("inf")
        for _ in range(rounds):
            reader = AnswerParser(QWEN3, plan)
            if what == "arguments":
                reader.feed("", [(0, 1)])
            began = time.thread_time()
            for part in parts:
                reader.feed(part)
            best = min(best, time.thread_time() - began)
        table.add_row(what, str(len(parts)), f"{best / len(parts) * 1e6:.2f}")
    console.print(table)


def _tools(number: int) -> list[Tool]:
    schema = {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["metric", "imperial"]}}
    return [
        Tool(
            f"tool_{index}",
            {
                "type": "object",
                "properties": {**schema, f"option_{index}": {"type": "boolean"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        )
        for index in range(number)
    ]


def _spelled(card: ModelCard) -> ModelCard:
    return replace(card, tool_markers={role: Marker(marker.text) for role, marker in card.tool_markers.items()})


def _ids(tekken: RealTokenizer, card: ModelCard, text: str) -> list[int]:
    """The ids of an answer; tekken of this version has no token for the arguments, and lends another one."""
    text = text.replace("[ARGS]", "<SPECIAL_20>")
    for marker in card.tool_markers.values():
        if marker.token_id is not None and marker.text in text:
            before, after = text.split(marker.text, 1)
            return [*_ids(tekken, card, before), marker.token_id, *_ids(tekken, card, after)]
    return tekken.encode(text)[1:-1] if text else []


def _micros(seconds: Iterable[float]) -> tuple[str, str, str]:
    values = np.array([*seconds]) * 1e6
    return f"{np.median(values):.0f}", f"{np.percentile(values, 99):.0f}", f"{values.max():.0f}"


if __name__ == "__main__":
    main()
