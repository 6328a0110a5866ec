"""Conversations that the demo model learns to hold.

Owns the drawing of turns, from the hand-written ones and from facts. Never tokenizes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.facts import Fact, read_facts
from demo.tokenizer import ASSISTANT, SYSTEM, USER


@dataclass
class Conversations:
    """Draws conversations: a few turns of small talk and of questions about Python, worded a little differently."""

    system: list[str]
    questions: dict[str, list[str]]
    talk: list[dict[str, Any]]
    concepts: list[Fact]
    core: list[Fact]
    library: list[Fact]
    weights: dict[int, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Conversations:
        """Return the hand-written conversations of a file, with the facts that this Python's docstrings give."""
        data = json.loads(path.read_text(encoding="utf-8"))
        concepts = [
            Fact("concept", tuple(entry["names"]), entry["answer"], entry.get("example", ""), entry.get("weight", 1.0))
            for entry in data["concepts"]
        ]
        core, library = read_facts(concepts)
        return cls(data["system"], data["questions"], data["talk"], concepts, core, library)

    def all_text(self) -> Iterator[str]:
        """Yield every answer and question once, for the tokenizer."""
        for fact in [*self.concepts, *self.core, *self.library]:
            yield from (self.questions[fact.kind][0].replace("{name}", name) for name in fact.names)
            yield fact.answer
            yield fact.example
        for entry in self.talk:
            yield from entry["ask"]
            yield from entry["say"]

    def draw(self, rng: random.Random) -> list[tuple[str, str]]:
        """Draw one conversation, as pairs of a role's token and a text."""
        turns: list[tuple[str, str]] = []
        if rng.random() < 0.25:
            turns.append((SYSTEM, rng.choice(self.system)))
        for _ in range(rng.choices((1, 2, 3, 4), (60, 20, 12, 8))[0]):
            for question, answer in self._exchange(rng):
                turns += [(USER, question), (ASSISTANT, answer)]
        return turns

    def _exchange(self, rng: random.Random) -> list[tuple[str, str]]:
        choice = rng.random()
        if choice < 0.15:
            entry = self._weighted(rng, self.talk, lambda item: float(item.get("weight", 1.0)))
            return [(self._vary(rng, rng.choice(entry["ask"])), rng.choice(entry["say"]))]
        facts = self.concepts if choice < 0.47 else self.core if choice < 0.77 else self.library
        fact = self._weighted(rng, facts, lambda item: item.weight)
        name = fact.names[0] if rng.random() < 0.4 else rng.choice(fact.names)
        shown = f"{fact.answer}\n\nFor example:\n\n{fact.example}"
        if fact.example and rng.random() < 0.35:
            return [(self._ask(rng, "usage", name), shown)]
        exchanges = [(self._ask(rng, fact.kind, name), fact.answer)]
        if fact.example and rng.random() < 0.25:
            exchanges.append(
                (self._vary(rng, rng.choice(self.questions["follow_up"])), f"For example:\n\n{fact.example}")
            )
        return exchanges

    def _ask(self, rng: random.Random, kind: str, name: str) -> str:
        return self._vary(rng, rng.choice(self.questions[kind]).replace("{name}", name))

    @staticmethod
    def _vary(rng: random.Random, question: str) -> str:
        """Return the question as another person may type it."""
        if rng.random() < 0.2:
            question = question.rstrip("?.!")
        if rng.random() < 0.2 and question[1:2].islower():
            question = question[0].lower() + question[1:]
        elif rng.random() < 0.05 and question[1:2].islower():
            opening = rng.choice(("Hello, ", "Hi! ", "Please: ", "So, ", "Ok, ", "Now, "))
            question = opening + (question if opening.endswith("! ") else question[0].lower() + question[1:])
        return question

    def _weighted(self, rng: random.Random, items: list[Any], weight: Callable[[Any], float]) -> Any:
        cumulated = self.weights.get(id(items))
        if cumulated is None:
            total = 0.0
            cumulated = self.weights[id(items)] = [total := total + weight(item) for item in items]
        return rng.choices(items, cum_weights=cumulated)[0]
