"""Rollouts under simulated callers, with the stages and the gateway's own page of metrics as they are.

Owns when requests begin and end, and on which side. Never a clock: a rollout of an hour takes a second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from trident_gateway.observing.metrics import Metrics
from trident_gateway.observing.request_log import RequestRecord
from trident_tools.rollouts.figures import Window
from trident_tools.rollouts.machine import Phase, Plan, Progress, Sight, advance, begin
from trident_tools.rollouts.pages import CANARY, STABLE, parse_page

ROUTE = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Args:
        duration_s: until it ends.
        status: of HTTP.
        finish_reason: "" for none.
    """

    duration_s: float
    status: int = 200
    finish_reason: str = ""


#: Returns the answer of a side.
Answering = Callable[[Random, str], Answer]


def answer_in_time(draw: Random, side: str) -> Answer:  # noqa: ARG001 (both sides are the same)
    """Answer, as both sides of a good rollout do: what ends by its length takes longer than what stops by itself."""
    if draw.random() < 0.4:
        return Answer(draw.uniform(15, 45), finish_reason="length")
    return Answer(draw.uniform(1, 8), finish_reason="stop")


def simulate(plan: Plan, answering: Answering, *, seed: int, rate: float = 10.0, look_s: float = 5.0) -> Progress:
    """Go through the stages; return the end.

    Args:
        plan: of the rollout.
        answering: the answers of both sides.
        seed: of chance.
        rate: requests in a second, at random times, of a caller each.
        look_s: seconds between two looks.
    """
    draw = Random(seed)  # noqa: S311
    metrics = Metrics()
    ends: defaultdict[int, list[RequestRecord]] = defaultdict(list)
    progress, now, look, weight = begin(plan), 0.0, 0, 0.0
    before = parse_page(metrics.render().decode()).figures
    while progress.phase not in (Phase.DONE, Phase.UNDOING):
        # The stable side alone before the first stage, for a minute.
        weight = progress.weight if look * look_s >= 60 else 0.0
        until = now + look_s
        while (now := now + draw.expovariate(rate)) < until:
            side = CANARY if draw.random() * 100 < weight else STABLE
            answer = answering(draw, side)
            reasons = (answer.finish_reason,) if answer.finish_reason else ()
            ends[int((now + answer.duration_s) / look_s)].append(
                RequestRecord(route=ROUTE, model="demo", status=answer.status, side=side, finish_reasons=reasons)
            )
        now = until
        for record in ends.pop(look, ()):
            metrics.count_request(record)
        look += 1
        figures = parse_page(metrics.render().decode()).figures
        counted = Window(figures[STABLE].since(before[STABLE]), figures[CANARY].since(before[CANARY]))
        before = figures
        if weight:
            progress = advance(plan, progress, Sight(look_s, frozenset({progress.weight}), counted=counted))
    return progress
