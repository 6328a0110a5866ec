"""Trident behind tritonserver and transformers' continuous batching, in turn, on the same prompts.

Owns the turns, the figures of each round and what they come to. Never starts a server or loads a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from tests.benchmarks.gpu_transformers import TransformersBaseline
from tests.benchmarks.served import run_served

Figures = dict[str, float]
SERVED, BASELINE = "trident", "transformers"


@dataclass(frozen=True)
class Load:
    """So many users at once, each with a random prompt; lengths in tokens, of a vocabulary without special ones."""

    num_users: int
    prompt_tokens: int
    output_tokens: int
    vocab_size: int

    def prompts(self, seed: int) -> list[list[int]]:
        """Token ids, others for each seed."""
        rng = random.Random(seed)  # noqa: S311 (prompts, not secrets)
        return [rng.choices(range(self.vocab_size), k=self.prompt_tokens) for _ in range(self.num_users)]


def run_rounds(url: str, baseline: TransformersBaseline | None, load: Load, num_rounds: int) -> Iterator[Figures]:
    """The figures of each round, as soon as it has ended; one more comes first and is not counted.

    Args:
        url: of the server, for gRPC.
        baseline: what it is compared with; None where there is nothing.
        load: what both are asked.
        num_rounds: how often.
    """
    for number in range(num_rounds + 1):
        prompts = load.prompts(number)
        figures: Figures = {}

        def run_trident(prompts: list[list[int]] = prompts, figures: Figures = figures) -> None:
            texts = [" ".join(f"w{token}" for token in prompt) for prompt in prompts]
            run = run_served(url, texts, load.output_tokens)
            figures.update(_figures(SERVED, load, run.seconds, run.first_token_seconds))

        def run_baseline(prompts: list[list[int]] = prompts, figures: Figures = figures) -> None:
            if baseline is not None:
                run = baseline.run(prompts, load.output_tokens)
                figures.update(_figures(BASELINE, load, run.seconds, run.first_token_seconds))

        turns: list[Callable[[], None]] = [run_trident, run_baseline]
        # Each round begins with the other, so that a drift of the machine's speed favours neither.
        for turn in turns[number % 2 :] + turns[: number % 2]:
            turn()
        if number:
            yield figures


def summarize(rounds: list[Figures]) -> dict[str, tuple[float, float, float]]:
    """Median, least and most of every figure, and of the ratios, which are taken round by round."""
    values = {name: [one[name] for one in rounds] for name in rounds[0]}
    for what in ("tokens/s", "TTFT p50, ms"):
        if f"{BASELINE}, {what}" in values:
            pairs = zip(values[f"{SERVED}, {what}"], values[f"{BASELINE}, {what}"], strict=True)
            values[f"{SERVED} / {BASELINE}, {what}"] = [served / other for served, other in pairs]
    return {name: (median(numbers), min(numbers), max(numbers)) for name, numbers in values.items()}


def parity(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> Figures:
    """How far two engines' logits of the same tokens, `[T, vocab]`, are apart."""
    spread = float(expected.std())
    difference = np.abs(found - expected)
    return {
        "mean difference / standard deviation": float(difference.mean()) / spread,
        "largest difference / standard deviation": float(difference.max()) / spread,
        "share of tokens with the same likeliest successor": float((found.argmax(1) == expected.argmax(1)).mean()),
    }


def _figures(name: str, load: Load, seconds: float, first_token_seconds: list[float]) -> Figures:
    return {
        f"{name}, tokens/s": load.num_users * load.output_tokens / seconds,
        f"{name}, TTFT p50, ms": 1000 * median(first_token_seconds),
    }
