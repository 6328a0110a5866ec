"""What is fused computes the same with fewer launches, and nothing is fused that another step reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trident_backend.engine.gpu.program import Argument, AttentionCall, Count, Kind
from trident_compiler.cuda.builder import NOTHING, value
from trident_compiler.cuda.fusion import AnyStep, fuse, fuse_all, mentions
from trident_compiler.cuda.linear_tiles import Matrix
from trident_compiler.cuda.operations import Activate, Gated, Linear, Product, Sum, Target
from trident_compiler.families.words import Activation

TARGET, WIDTH = Target("bf16", (9, 0), 64), 4
LOGITS = Argument(Kind.LOGITS)


def linear(x: str, out: str, **changes: Any) -> Linear:
    weight = Argument(Kind.WEIGHT, f"{x} to {out}")
    return replace(Linear(TARGET, Matrix(WIDTH, WIDTH), value(x), weight, value(out), "bf16"), **changes)


def total(a: str, b: str, out: str) -> Sum:
    return Sum(value(a), value(b), value(out), WIDTH, "bf16")


def product(a: str, b: str, out: str, b_width: int = WIDTH) -> Product:
    return Product(value(a), value(b), value(out), WIDTH, b_width, "bf16")


def silu(x: str, out: str) -> Activate:
    return Activate(Activation.SILU, value(x), value(out), WIDTH, "bf16")


def test_fuse_a_sum_goes_into_the_product_before_it() -> None:
    assert fuse([linear("x", "y"), total("x", "y", "z")]) == [
        replace(linear("x", "y"), residual=value("x"), out=value("z"))
    ]
    assert fuse([linear("x", "y"), total("y", "x", "z")]) == [
        replace(linear("x", "y"), residual=value("x"), out=value("z"))
    ]


def test_fuse_of_two_products_the_later_takes_the_other() -> None:
    first, second = linear("x", "a"), linear("x", "b")
    assert fuse([first, second, total("a", "b", "z")]) == [first, replace(second, residual=value("a"), out=value("z"))]


def test_fuse_an_activation_goes_into_the_product_of_two_values() -> None:
    for step in (product("g", "u", "z"), product("u", "g", "z")):
        assert fuse([silu("x", "g"), step]) == [
            Gated(Activation.SILU, value("x"), value("u"), value("z"), WIDTH, "bf16")
        ]


@pytest.mark.parametrize(
    "steps",
    [
        [linear("x", "y"), total("x", "y", "z"), silu("y", "w")],
        [linear("x", "y", residual=value("x")), total("x", "y", "z")],
        [linear("x", "y", out_dtype="fp32"), total("x", "y", "z")],
        [linear("x", "y"), total("y", "y", "z")],
        [replace(linear("x", "y"), out=LOGITS), Sum(LOGITS, value("x"), LOGITS, WIDTH, "fp32")],
        [silu("x", "g"), product("g", "u", "z"), silu("g", "w")],
        [silu("x", "g"), product("u", "g", "z", 1)],
        [silu("x", "g"), product("g", "g", "z")],
        [silu("x", "g"), total("g", "x", "z")],
        [linear("x", "y"), product("x", "y", "z")],
        [linear("x", "y"), total("x", "y", "z"), AttentionCall(0, 0, "y", "x", "x", "o", {})],
    ],
)
def test_fuse_leaves_what_it_must(steps: list[AnyStep]) -> None:
    assert fuse(steps) == steps


def test_fuse_all_leaves_what_the_head_reads() -> None:
    body: list[AnyStep] = [linear("x", "y"), total("x", "y", "z")]
    head: list[AnyStep] = [silu("y", "w")]
    assert fuse_all({Count.TOKENS: body, Count.ROWS: head}) == {Count.TOKENS: body, Count.ROWS: head}
    assert len(fuse_all({Count.TOKENS: body, Count.ROWS: [silu("z", "w")]})[Count.TOKENS]) == 1


def computed(steps: list[AnyStep]) -> dict[str, Any]:
    """The values that steps make of `x`; a read of what nobody has written fails."""
    values: dict[str, Any] = {"x": np.arange(1.0, 1.0 + WIDTH) / WIDTH}

    def activated(x: Any) -> Any:
        return x / (1 + np.exp(-x))

    for step in steps:
        if isinstance(step, Linear):
            seed = sum(map(ord, step.weight.name))
            result = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)) @ values[step.x.name]
            values[step.out.name] = result if step.residual == NOTHING else result + values[step.residual.name]
        elif isinstance(step, Activate):
            values[step.out.name] = activated(values[step.x.name])
        elif isinstance(step, Gated):
            values[step.out.name] = activated(values[step.gate.name]) * values[step.up.name]
        elif isinstance(step, Sum):
            values[step.out.name] = values[step.a.name] + values[step.b.name]
        else:
            assert isinstance(step, Product)
            values[step.out.name] = values[step.a.name] * values[step.b.name]
    return values


@st.composite
def _networks(draw: st.DrawFn) -> list[AnyStep]:
    names, steps = ["x"], list[AnyStep]()
    for index in range(draw(st.integers(1, 14))):
        a, b = draw(st.sampled_from(names[-4:])), draw(st.sampled_from(names[-4:]))
        out = f"v{index}"
        makers: list[AnyStep] = [linear(a, out), silu(a, out), total(a, b, out), product(a, b, out)]
        steps.append(draw(st.sampled_from(makers)))
        names.append(out)
    return steps


@settings(deadline=None, max_examples=200)
@given(_networks())
def test_fuse_computes_the_same(steps: list[AnyStep]) -> None:
    fused = fuse(steps)
    wanted, found = computed(steps), computed(fused)
    last = steps[-1].arguments["out"].name
    np.testing.assert_allclose(found[last], wanted[last], rtol=1e-12)
    for name, numbers in found.items():
        np.testing.assert_allclose(numbers, wanted[name], rtol=1e-12)
    # What is gone is what one step alone has read.
    for gone in wanted.keys() - found.keys():
        assert sum(gone in mentions(step) for step in steps) == 2
