"""Every family on the engine of our own kernels, on a GPU that is a double, computes what transformers does.

Prompts in chunks and beside each other, then decoding, in blocks that lie anywhere; windows are shorter than prompts.
Memory that nobody has written is NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backend.engine.driver import DrivenSequence, Driver, Floats
from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.cuda.engines import build, load
from tests.handed_weights import COMPUTE_TYPES, RememberingSource, dequantized
from tests.tensorrt.double.engines import installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.protocol import Engine
from trident_compiler import compiler
from trident_compiler.cuda.refusals import REFUSALS
from trident_compiler.weights.weights import Weight

SERVED = [case for case in ALL if not set(case.features) & set(REFUSALS)]
#: Steps: for each sequence that takes part, how many of its tokens.
STEPS: tuple[dict[int, int], ...] = ({0: 40}, {1: 9, 0: 1}, {0: 27, 1: 57}, {1: 1, 0: 1}, {0: 1, 1: 4}, {1: 1, 0: 1})
MAX_NUM_TOKENS = 84
COUNTS = [sum(step.get(index, 0) for step in STEPS) for index in (0, 1)]
#: How far logits may be, as a share of the largest; products are added up in another order.
TOLERANCE, MIXTURE_TOLERANCE = 2e-5, 1e-4


@dataclass(frozen=True)
class Bound:
    """How far logits may be from transformers' in fp32, as shares of the largest logit.

    Args:
        largest: difference from a model with the very numbers that the engine's weights stand for.
        typical: root of the mean square of these differences.
        from_plain: root of the mean square of the differences from the checkpoint itself: what quantizing costs.
    """

    largest: float
    typical: float
    from_plain: float


#: By the formats of computation and of matrices; about twice what was measured.
BOUNDS = {
    ("fp16", "fp16"): Bound(1e-2, 1.2e-3, 1.2e-3),
    ("bf16", "bf16"): Bound(9e-2, 9e-3, 9e-3),
    ("fp32", "int8"): Bound(2e-5, 2e-6, 2e-2),
    ("bf16", "int8"): Bound(9e-2, 9e-3, 2e-2),
    ("fp16", "int4"): Bound(1e-2, 1.2e-3, 0.2),
    ("bf16", "int4"): Bound(9e-2, 9e-3, 0.2),
    ("bf16", "fp8"): Bound(9e-2, 9e-3, 0.1),
}
CASES = {str(case): case for case in SERVED}
#: One family in all formats; some unlike it where mistakes are told from rounding.
IN_FORMATS = [("llama", *formats) for formats in BOUNDS] + [
    ("gemma3_text", "bf16", "bf16"),
    ("starcoder2", "bf16", "bf16"),
    ("phi", "fp32", "int8"),
    ("olmo2", "fp16", "int4"),
]


@pytest.fixture(autouse=True, scope="module")
def machine() -> Iterator[None]:
    """The doubles, and one thread: small products are slower on many."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with installed():
        yield
        assert GPUS.leaks() == []
    torch.set_num_threads(num_threads)


def played(folder: Path, vocab_size: int) -> list[tuple[list[int], Floats]]:
    """Return two random sequences, and the engine's logits for all of their tokens."""
    draw = np.random.default_rng(0)
    sequences = [DrivenSequence(draw.integers(3, vocab_size, count).tolist()) for count in COUNTS]
    found: list[list[Floats]] = [[], []]
    with closing(load(folder, captured=(2,))) as engine:
        play(engine, sequences, STEPS, found)
    return [(one.tokens, np.concatenate(rows)) for one, rows in zip(sequences, found, strict=True)]


def play(
    engine: Engine, sequences: list[DrivenSequence], steps: tuple[dict[int, int], ...], found: list[list[Floats]]
) -> None:
    """Take steps, whose logits are appended to what was found of each sequence."""
    driver = Driver(engine)
    for step in steps:
        logits = driver.step([(sequences[index], count) for index, count in step.items()])
        for index, rows in zip(step, logits, strict=True):
            found[index].append(rows)


def differences(dialogues: list[tuple[list[int], Floats]], model: Any) -> Floats:
    """All logits' distances from the model's, as shares of the largest one."""
    with torch.no_grad():
        wanted = [model(torch.tensor([tokens])).logits[0].float().numpy() for tokens, _ in dialogues]
    largest = max(float(np.abs(logits).max()) for logits in wanted)
    found: Floats = np.concatenate([(a - b).ravel() for (_, a), b in zip(dialogues, wanted, strict=True)]) / largest
    return found


def typical(shares: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(shares))))


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_cuda_parity_every_family_computes_what_transformers_does(case: Case, tmp_path: Path) -> None:
    reference = case.save(tmp_path / "checkpoint")
    folder = build(
        tmp_path / "checkpoint", tmp_path / "1", "fp32", max_num_tokens=MAX_NUM_TOKENS, max_seq_len=case.max_seq_len
    )
    found = differences(played(folder, reference.config.vocab_size), reference)
    assert np.abs(found).max() < (MIXTURE_TOLERANCE if case.mixture else TOLERANCE)


def with_the_same_numbers(model: Any, weights: dict[str, Weight], compute: str) -> Any:
    """The model with the weights that the engine has."""
    values = {name: dequantized(weight, COMPUTE_TYPES[compute]) for name, weight in weights.items()}
    _, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected
    return model


@pytest.mark.parametrize(("name", "compute", "weights"), IN_FORMATS)
def test_cuda_parity_in_every_format(
    name: str, compute: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, case, sources = BOUNDS[compute, weights], CASES[name], list[RememberingSource]()

    def remembering(*args: Any, **options: Any) -> RememberingSource:
        sources.append(RememberingSource(*args, **options))
        return sources[-1]

    monkeypatch.setattr(compiler, "WeightSource", remembering)
    reference = case.save(tmp_path / "checkpoint")
    folder = build(
        tmp_path / "checkpoint",
        tmp_path / "1",
        compute,
        weights,
        max_num_tokens=MAX_NUM_TOKENS,
        max_seq_len=case.max_seq_len,
    )
    dialogues = played(folder, reference.config.vocab_size)
    from_plain = differences(dialogues, reference)
    handed = {name: weight for source in sources for name, weight in source.handed.items()}
    from_same = differences(dialogues, with_the_same_numbers(reference, handed, compute))
    assert np.abs(from_same).max() < bound.largest
    assert typical(from_same) < bound.typical
    assert typical(from_plain) < bound.from_plain


def round_what_is_cached(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model's layers attend to keys and values that are rounded to e4m3."""
    module = sys.modules[type(model).__module__]
    attend: Any = vars(module)["eager_attention_forward"]

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)

    def attend_to_rounded(layer: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        return attend(layer, query, rounded(key), rounded(value), *rest, **options)

    monkeypatch.setattr(module, "eager_attention_forward", attend_to_rounded)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_cuda_parity_a_cache_of_fp8_is_one_of_rounded_keys_and_values(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number near the middle of two may be rounded to the other one, as it was computed in another order."""
    case = CASES[name]
    reference = case.save(tmp_path / "checkpoint")
    folder = build(tmp_path / "checkpoint", tmp_path / "1", max_num_tokens=MAX_NUM_TOKENS, fp8_cache=True)
    dialogues = played(folder, reference.config.vocab_size)
    from_plain = differences(dialogues, reference)
    round_what_is_cached(reference, monkeypatch)
    from_same = differences(dialogues, reference)
    assert np.median(np.abs(from_same)) < 1e-6
    assert typical(from_same) < 2e-4
    assert 5e-3 < typical(from_plain) < 3e-2, "what rounding costs a model of such random weights"


def test_cuda_parity_the_kernels_themselves_compute_mixed_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source of every kernel, in the interpreter: windows, sinks, experts and biases."""
    case = CASES["gpt_oss"]
    case = replace(case, config={**case.config, "num_hidden_layers": 2})
    reference = case.save(tmp_path / "checkpoint")
    folder = build(tmp_path / "checkpoint", tmp_path / "1", max_num_tokens=40)
    draw = np.random.default_rng(0)
    sequences = [DrivenSequence(draw.integers(3, reference.config.vocab_size, count).tolist()) for count in (21, 12)]
    found: list[list[Floats]] = [[], []]
    with closing(load(folder, captured=(2,))) as engine:
        monkeypatch.setenv("DOUBLE_INTERPRETS", "1")
        play(engine, sequences, ({0: 20}, {0: 1, 1: 12}), found)
    dialogues = [(one.tokens, np.concatenate(rows)) for one, rows in zip(sequences, found, strict=True)]
    assert np.abs(differences(dialogues, reference)).max() < MIXTURE_TOLERANCE
