"""The plan of a load: whom it asks, what, how often and for how long.

Owns the description. Never runs a load.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from trident_tools.load.loads import Load, Timing
from trident_tools.load.objectives import Objective
from trident_tools.load.prompts import PromptPlan
from trident_tools.load.target import Target


@dataclass(frozen=True)
class LoadPlan:
    """Everything that a load is made of.

    Args:
        target: the server.
        loads: one for each stage, in order.
        timing: the timing of every stage.
        prompts: the prompts that are sent.
        tokenizer: makes the lengths of prompts exact; None where they may be approximate.
        objectives: the objectives that goodput counts.
        metrics_url: the URL of the server's metrics page; None to derive it from the target's.
    """

    target: Target
    loads: tuple[Load, ...]
    timing: Timing
    prompts: PromptPlan
    tokenizer: Tokenizer | None
    objectives: tuple[Objective, ...]
    metrics_url: str | None
