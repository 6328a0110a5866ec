"""Engines on a GPU compute what transformers compute, for every family and precision, with and without graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.backend.engine.driver import DrivenSequence, Driver
from tests.checkpoints import reference_model
from tests.gpu import hardware
from tests.gpu.conftest import MAX_SEQ_LEN, Build, loaded
from tests.gpu.steps import continued_from_copies, mixed_steps, prompt
from tests.tensorrt.number_formats import Array
from tests.tensorrt.slot_networks import write_network
from tests.tensorrt.test_parity import BOUNDS, CASES, differences, trt, typical, with_the_same_numbers
from trident_backend.engine.protocol import Engine, execute
from trident_backend.engine.tensorrt.plan import Context

pytestmark = pytest.mark.gpu
CheckpointOf = Callable[[str], Path]
#: What the compiler builds of what is evaluated without a GPU; each in the same bounds.
BUILT = [case for case in CASES if case[1] != "fp32" and case[1:] != ("fp16", "fp8")]
#: The first compute capability with products in a format.
FIRST = {"bf16": (8, 0), "fp8": (8, 9)}
TOLERANCE = 0.05


def needs(*formats: str) -> None:
    """Skip what the GPU at hand cannot compute in."""
    for name in formats:
        if hardware.capability() < FIRST.get(name, (0, 0)):
            pytest.skip(f"{hardware.gpu_name()} cannot compute in {name}")


@pytest.mark.parametrize(("family", "compute", "weights"), BUILT)
def test_logits_mixed_steps_equal_transformers(
    family: str, compute: str, weights: str, checkpoint_of: CheckpointOf, repository_of: Build
) -> None:
    needs(compute, weights)
    bound = BOUNDS[compute, weights]
    with loaded(repository_of(family, compute, None if weights == compute else weights)) as engine:
        outcome = mixed_steps(engine)
    plain = reference_model(checkpoint_of(family))
    assert typical(differences(outcome, plain)) < bound.from_plain
    written = write_network(trt, checkpoint_of(family), compute, weights, MAX_SEQ_LEN + 1)
    from_same = differences(outcome, with_the_same_numbers(plain, written.weights, compute))
    assert np.abs(from_same).max() < bound.largest
    assert typical(from_same) < bound.typical


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
def test_logits_kernels_heed_lengths(compute: str, checkpoint_of: CheckpointOf, repository_of: Build) -> None:
    """Where this fails, `--attention lengths` gives wrong answers on this GPU; the default does not rely on it."""
    needs(compute)
    with loaded(repository_of("llama", compute, None, "--attention", "lengths")) as engine:
        outcome = mixed_steps(engine)
    plain = reference_model(checkpoint_of("llama"))
    assert typical(differences(outcome, plain)) < BOUNDS[compute, compute].from_plain


def test_logits_graphs_change_nothing(repository_of: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = repository_of("llama")
    with loaded(repository) as engine:
        with_graphs = mixed_steps(engine)
    monkeypatch.setattr(Context, "is_capturable", property(lambda _: False))
    with loaded(repository) as engine:
        without = mixed_steps(engine)
    for (_, one), (_, other) in zip(with_graphs, without, strict=True):
        # With and without a graph TensorRT-RTX may run different kernels, which add up in another order.
        np.testing.assert_allclose(one, other, atol=TOLERANCE * np.abs(other).max())


def test_logits_chunks_equal_the_whole(repository_of: Build) -> None:
    with loaded(repository_of("llama")) as engine:
        tokens = prompt(200, 5)
        whole = Driver(engine, seed=1).whole(tokens)
        pieces = _in_chunks(engine, tokens, (100, 1, 1, 31, 67))
    np.testing.assert_allclose(pieces, whole, atol=TOLERANCE * np.abs(whole).max())


@pytest.mark.parametrize("copies", [[[3, 5]], [[3, 5], [5, 0]], [[5, 3], [3, 4], [4, 15]]])
def test_logits_a_copied_beginning_is_as_good_as_a_computed_one(copies: list[list[int]], repository_of: Build) -> None:
    tokens = prompt(90, 6)
    with loaded(repository_of("llama")) as engine:
        whole = Driver(engine).whole(tokens)
        continued = continued_from_copies(engine, tokens, 50, copies)
    np.testing.assert_allclose(continued, whole[50:], atol=TOLERANCE * np.abs(whole).max())


def test_logits_a_step_may_want_no_logits(repository_of: Build) -> None:
    with loaded(repository_of("llama")) as engine:
        batch = Driver(engine).batch([(DrivenSequence(prompt(10, 1)), 10)], num_logits=0)
        assert execute(engine, batch).shape == (0, engine.spec.vocab_size)


def test_logits_the_same_step_gives_the_same_logits(repository_of: Build) -> None:
    with loaded(repository_of("llama")) as engine:
        once, again = mixed_steps(engine, seed=3), mixed_steps(engine, seed=3)
    for (_, one), (_, other) in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, other)


def _in_chunks(engine: Engine, tokens: list[int], counts: tuple[int, ...]) -> Array:
    """All logits of a new sequence, computed in so many steps."""
    driver, sequence = Driver(engine, seed=2), DrivenSequence(tokens)
    return np.concatenate([driver.step([(sequence, count)])[0] for count in counts])
