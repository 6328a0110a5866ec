"""The prompts of a load: read from a file, or made up with given lengths.

Owns their texts, and how many tokens each asks for. Prompts are endless and equal for equal seeds; made-up prompts do
not repeat, prompts of a file do. Never sends a prompt.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trident_tools.load.distributions import Distribution
from trident_tools.load.text_maker import TextMaker

_BATCH = 256
_KNOWN_KEYS = {"text_input", "messages", "max_tokens"}


@dataclass(frozen=True)
class Prompt:
    """The prompt of one request.

    Args:
        text: the text; None for a chat.
        messages: the messages of a chat; None for a text.
        max_tokens: how many tokens to generate at most.
    """

    text: str | None
    messages: tuple[dict[str, Any], ...] | None
    max_tokens: int


@dataclass(frozen=True)
class WrittenPrompt:
    """A line of a file of prompts: a `Prompt` whose `max_tokens` is None where the line does not say."""

    text: str | None
    messages: tuple[dict[str, Any], ...] | None
    max_tokens: int | None


@dataclass(frozen=True)
class PromptPlan:
    """The description of a load's prompts.

    Args:
        input_tokens: lengths of made-up prompts, without the shared prefix.
        output_tokens: tokens to generate, where a prompt itself does not say.
        shared_prefix: tokens with which every prompt begins; for a chat they are a system message.
        written: prompts of a file, taken in turn; empty to make prompts up.
        seed: the seed of every random choice.
    """

    input_tokens: Distribution
    output_tokens: Distribution
    shared_prefix: int
    written: tuple[WrittenPrompt, ...]
    seed: int


def make_prompts(plan: PromptPlan, texts: TextMaker) -> Iterator[Prompt]:
    """Yield the prompts of a load without end.

    Raises:
        ServerError: no text of exactly the wanted length can be made with this tokenizer.
    """
    random = np.random.default_rng([plan.seed, 0])
    prefix = texts.text(random, plan.shared_prefix) if plan.shared_prefix else ""
    max_tokens = _lengths(plan.output_tokens, random)
    if plan.written:
        for written in itertools.cycle(plan.written):
            yield _with_prefix(written, prefix, written.max_tokens or next(max_tokens))
    for length in _lengths(plan.input_tokens, random):
        text = texts.text(random, plan.shared_prefix + length, prefix)
        yield Prompt(text, None, next(max_tokens))


def read_prompts(path: str) -> tuple[WrittenPrompt, ...]:
    """Read a JSONL file of prompts: each line is `{"text_input": ...}` or `{"messages": [...]}`.

    A line may have `max_tokens` as well.

    Raises:
        argparse.ArgumentTypeError: the file cannot be read, or a line has another form; names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {error}") from None
    prompts = tuple(_parse(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
    if not prompts:
        raise argparse.ArgumentTypeError(f"{path} has no prompts: write one JSON object a line")
    return prompts


def _parse(where: str, line: str) -> WrittenPrompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(entry, dict) or ("text_input" in entry) == ("messages" in entry):
        raise argparse.ArgumentTypeError(f"{where}: write an object with either text_input or messages")
    if unknown := sorted(entry.keys() - _KNOWN_KEYS):
        raise argparse.ArgumentTypeError(f"{where}: {unknown[0]} is not known; a prompt has {sorted(_KNOWN_KEYS)}")
    text, messages, max_tokens = entry.get("text_input"), entry.get("messages"), entry.get("max_tokens")
    if "text_input" in entry and not isinstance(text, str):
        raise argparse.ArgumentTypeError(f"{where}: text_input must be a string")
    if "messages" in entry and not _are_messages(messages):
        raise argparse.ArgumentTypeError(f"{where}: messages must be a list of objects, one at least")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise argparse.ArgumentTypeError(f"{where}: max_tokens must be a whole number of at least 1")
    return WrittenPrompt(text, None if messages is None else tuple(messages), max_tokens)


def _are_messages(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(message, dict) for message in value)


def _with_prefix(written: WrittenPrompt, prefix: str, max_tokens: int) -> Prompt:
    text, messages = written.text, written.messages
    if prefix and text is not None:
        text = f"{prefix}\n\n{text}"
    if prefix and messages is not None:
        messages = ({"role": "system", "content": prefix}, *messages)
    return Prompt(text, messages, max_tokens)


def _lengths(distribution: Distribution, random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from distribution.sample(random, _BATCH).tolist()
