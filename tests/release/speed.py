"""The speed of two states of the project, whose servers stand side by side and are put under load in turn.

Owns the loads and the turns. Never compares.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from tests.benchmarks.served import ServedRun, run_served
from tests.e2e.build import build
from tests.e2e.server import serve
from tests.release.installation import Installation

Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What is asked of both servers.

    Args:
        name: says so on the page.
        model: a checkpoint's folder.
        options: of the build.
        num_prompts: that are asked in one turn.
        num_users: prompts at a time.
        prompt_words: of each.
        max_tokens: of each answer.
    """

    name: str
    model: Path
    options: tuple[str, ...]
    num_prompts: int
    num_users: int
    prompt_words: int
    max_tokens: int


def measure_in_turn(
    load: Load,
    states: tuple[Installation, Installation],
    work: Path,
    num_rounds: int,
    tell: Callable[[int, Figures, Figures], None],
) -> list[tuple[Figures, Figures]]:
    """Return the figures of two states for each round; the first round warms both up and is left out.

    Each state builds its own engine and serves it with its own code; every other round begins with the other one, so
    that a drift of the machine's speed favours none.
    """
    words = ["the", "of", "a", "for", "list", "value", "is", "w7", "w31"]
    with ExitStack() as stack:
        urls = []
        for number, state in enumerate(states):
            folder = work / f"{load.name.replace(' ', '-')}-{number}"
            repository = build(load.model, folder, *load.options, python=state.python)
            urls.append(stack.enter_context(serve(repository, work / f"speed-{number}.log", python=state.python)).grpc)
        rounds = []
        for number in range(num_rounds + 1):
            rng = random.Random(number)  # noqa: S311 (prompts, not secrets)
            prompts = [" ".join(rng.choices(words, k=load.prompt_words)) for _ in range(load.num_prompts)]
            found: dict[int, Figures] = {}
            for index in (0, 1) if number % 2 else (1, 0):
                run = run_served(urls[index], prompts, load.max_tokens, num_users=load.num_users, temperature=0.0)
                found[index] = _figures(run)
            if number:
                rounds.append((found[0], found[1]))
                tell(number, found[0], found[1])
    return rounds


def _figures(run: ServedRun) -> Figures:
    firsts = run.first_token_seconds
    gaps = [gap for stream in run.streams for gap in stream.gaps]
    return {
        "output tokens/s": run.num_tokens / run.seconds,
        "time to first token p50": median(firsts),
        "time to first token p95": _p95(firsts),
        "time between responses p95": _p95(gaps),
    }


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20)[18]
