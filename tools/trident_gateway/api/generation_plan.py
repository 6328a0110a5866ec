"""All of a request for text, as every endpoint hands it on.

Owns the plan's values. Never sends anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trident_gateway.api.choices import AnswerPlan
from trident_gateway.api.translate import ParamNames, Tensors
from trident_gateway.upstream.served_model import ServedModel


@dataclass(frozen=True)
class PromptCall:
    """One prompt, and what is asked of the ensemble for it.

    Args:
        values: the input tensors.
        num_bytes: of the prompt in UTF-8, or four for each token id; the estimate of its tokens goes by them.
        affinity: calls with equal bytes prefer the same server.
        names: how the client calls what may be refused.
    """

    values: Tensors
    num_bytes: int
    affinity: bytes
    names: ParamNames


@dataclass(frozen=True)
class GenerationPlan:
    """All of a request for text.

    Args:
        model: that is asked.
        prompts: one call each.
        answers: how the answers are read.
        num_choices: answers to each prompt.
        max_output_tokens: of one answer.
        is_stream: deltas are wanted as they come.
        timeout_s: seconds for all of it.
        echo: answers begin with their prompts.
    """

    model: ServedModel
    prompts: Sequence[PromptCall]
    answers: AnswerPlan
    num_choices: int
    max_output_tokens: int
    is_stream: bool
    timeout_s: float
    echo: bool = False

    @property
    def generates(self) -> bool:
        """Whether a model is to add anything to the prompts."""
        return self.max_output_tokens > 0
