"""What a load is made of: whom it asks, what, how often and for how long.

Owns the description alone. Never runs one.
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
        loads: one a stage, in order.
        timing: of every stage.
        prompts: what is asked.
        tokenizer: makes prompts' lengths exact; None where they may be about right.
        objectives: of goodput.
        metrics_url: of the server's metrics page; None for the one that belongs to the target.
    """

    target: Target
    loads: tuple[Load, ...]
    timing: Timing
    prompts: PromptPlan
    tokenizer: Tokenizer | None
    objectives: tuple[Objective, ...]
    metrics_url: str | None
