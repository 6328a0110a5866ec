"""Fusing operations with those that follow them: a sum into the product before it, a gate's activation into its use.

Owns when that is the same computation: where what lies between is read by nothing else. Never changes a step
that it is given, and never makes a launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from trident_backend.engine.gpu.program import Argument, AttentionCall, Count, Kind
from trident_compiler.cuda.builder import NOTHING, Operation, Step
from trident_compiler.cuda.operations import Activate, Gated, Linear, Product, Sum

AnyStep = Step | Operation | AttentionCall


def fuse_all(steps: Mapping[Count, Sequence[AnyStep]]) -> dict[Count, list[AnyStep]]:
    """Return the body and the head, each fused."""
    body, head = steps[Count.TOKENS], steps[Count.ROWS]
    return {Count.TOKENS: fuse(body, head), Count.ROWS: fuse(head)}


def fuse(steps: Sequence[AnyStep], used_later: Sequence[AnyStep] = ()) -> list[AnyStep]:
    """Return steps that compute the same with fewer launches.

    A fused operation stands where the later of the two stood: all that it reads is written by then, and a value is
    written once.

    Args:
        steps: of the body or of the head, in order.
        used_later: steps that follow in the other.
    """
    fusion = _Fusion(Counter(name for step in (*steps, *used_later) for name in mentions(step)))
    for step in steps:
        fusion.add(step)
    return [step for step in fusion.steps if step is not None]


def mentions(step: AnyStep) -> set[str]:
    """Return the names of the values that a step reads or writes."""
    named = {argument.name for argument in step.arguments.values() if argument.kind is Kind.VALUE}
    return named | {step.query, step.key, step.value, step.out} if isinstance(step, AttentionCall) else named


class _Fusion:
    """The steps so far, with None for those that are gone.

    Args:
        uses: how many steps mention each value.
    """

    def __init__(self, uses: Mapping[str, int]) -> None:
        self._uses = uses
        self._writers: dict[str, int] = {}
        self.steps: list[AnyStep | None] = []

    def add(self, step: AnyStep) -> None:
        """Add a step, with one before it that it alone reads, where they can be fused."""
        if isinstance(step, Sum):
            step = self._with_product(step)
        elif isinstance(step, Product) and step.b_width == step.width:
            step = self._with_activation(step)
        if isinstance(step, Linear | Activate) and step.out.kind is Kind.VALUE:
            self._writers[step.out.name] = len(self.steps)
        self.steps.append(step)

    def _with_product(self, step: Sum) -> AnyStep:
        for index, each, other in self._read_alone(step.a, step.b):
            if isinstance(each, Linear) and each.residual == NOTHING and each.out_dtype == step.dtype:
                self.steps[index] = None
                return replace(each, residual=other, out=step.out)
        return step

    def _with_activation(self, step: Product) -> AnyStep:
        for index, each, other in self._read_alone(step.a, step.b):
            if isinstance(each, Activate):
                self.steps[index] = None
                return Gated(each.kind, each.x, other, step.out, step.width, step.dtype)
        return step

    def _read_alone(self, a: Argument, b: Argument) -> Iterator[tuple[int, AnyStep | None, Argument]]:
        """Yield the step that writes one of two values, for this step alone, and the other value; the latest first."""
        found = [
            (self._writers[each.name], other)
            for each, other in ((a, b), (b, a))
            if each != other and each.kind is Kind.VALUE and each.name in self._writers and self._uses[each.name] == 2
        ]
        for index, other in sorted(found, key=lambda pair: -pair[0]):
            yield index, self.steps[index], other
