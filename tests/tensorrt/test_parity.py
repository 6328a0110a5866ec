"""The very network that is handed to TensorRT computes what transformers compute, on mixed steps over slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import FAMILIES, make_checkpoint, reference_model
from tests.handed_weights import COMPUTE_TYPES, dequantized
from tests.tensorrt.number_formats import Array
from tests.tensorrt.slot_networks import Chunk, SlotHost, Written, write_network
from trident_compiler.weights.weights import Weight

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")

SLOT_LEN, NUM_SLOTS = 49, 5
#: Sequences with their logits; of tokens that were copied there are none.
Dialogues = list[tuple[list[int], Array]]


@dataclass(frozen=True)
class Bound:
    """How far logits may be from transformers' in fp32, as shares of the largest logit.

    Args:
        largest: difference from a model with the very numbers that the network's weights stand for.
        typical: root of the mean square of these differences.
        from_plain: root of the mean square of the differences from the checkpoint itself: what quantizing costs.
    """

    largest: float
    typical: float
    from_plain: float


#: By the formats of computation and of matrices; about twice what was measured.
BOUNDS = {
    ("fp32", "fp32"): Bound(1e-5, 1e-6, 1e-6),
    ("fp16", "fp16"): Bound(1e-2, 1.2e-3, 1.2e-3),
    ("bf16", "bf16"): Bound(9e-2, 9e-3, 9e-3),
    ("fp16", "int8"): Bound(1e-2, 1.2e-3, 1.6e-2),
    ("bf16", "int8"): Bound(9e-2, 9e-3, 1.8e-2),
    ("fp16", "int4"): Bound(1e-2, 1.2e-3, 0.2),
    ("bf16", "int4"): Bound(9e-2, 9e-3, 0.2),
    # A number that falls to the other side of a float8 is some percent away, also where the sums before it agree.
    ("fp32", "fp8"): Bound(0.15, 8e-3, 0.12),
    ("fp16", "fp8"): Bound(0.5, 5e-2, 0.12),
    ("bf16", "fp8"): Bound(0.6, 7e-2, 0.12),
}
#: One family in all formats; the others where mistakes are told from rounding best, and worst.
CASES = [("llama", *formats) for formats in BOUNDS] + [
    (family, compute, compute) for family in FAMILIES if family != "llama" for compute in ("fp32", "bf16")
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: make_checkpoint(folder / family, family, **_changes(family)) for family in FAMILIES}


def _changes(family: str) -> dict[str, Any]:
    return {"sliding_window": 11} if family == "mistral" else {}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small products are slower on many threads, and much slower where others compute too."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class History:
    """Sequences that come and go in slots, and what the network says about each of their tokens."""

    def __init__(self, host: SlotHost, vocab_size: int, seed: int) -> None:
        self._host = host
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(seed)
        self._tokens: dict[int, list[int]] = {}
        self._logits: dict[int, list[Array]] = {}
        self.done: Dialogues = []

    def play(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for slot in range(NUM_SLOTS):
                if slot not in self._tokens and self._random.random() < 0.7:
                    self._begin(slot)
            chunks = [chunk for chunk in map(self._next, list(self._tokens)) if chunk is not None]
            self._random.shuffle(chunks)  # type: ignore[arg-type]
            for slot, logits in self._host.step(chunks).items():
                self._logits[slot].append(logits)
            for slot in list(self._tokens):
                if self._random.random() < 0.12:
                    self._end(slot)
        for slot in list(self._tokens):
            self._end(slot)

    def _begin(self, slot: int) -> None:
        """Some sequences begin with what another one has computed."""
        self._tokens[slot], self._logits[slot] = [], []
        others = [other for other, tokens in self._tokens.items() if other != slot and len(tokens) > 2]
        if others and self._random.random() < 0.5:
            other = int(self._random.choice(others))
            shared = int(self._random.integers(1, len(self._tokens[other])))
            self._host.copy(other, slot, shared)
            self._tokens[slot] = self._tokens[other][:shared]

    def _next(self, slot: int) -> Chunk | None:
        """A chunk of a prompt, one token, or nothing in this step."""
        tokens = self._tokens[slot]
        wanted = int(self._random.choice([0, 1, 1, 1, 2, 5, 9]))
        count = min(wanted, SLOT_LEN - 1 - len(tokens))
        if count == 0:
            return None
        new = self._random.integers(0, self._vocab_size, count).tolist()
        chunk = Chunk(slot, len(tokens), new)
        tokens.extend(new)
        return chunk

    def _end(self, slot: int) -> None:
        tokens, logits = self._tokens.pop(slot), self._logits.pop(slot)
        if logits:
            self.done.append((tokens, np.concatenate(logits)))


def play(written: Written, num_steps: int = 16) -> Dialogues:
    history = History(SlotHost(written.program, NUM_SLOTS), written.program.tensors["logits"].shape[1], seed=0)
    history.play(num_steps)
    return history.done


def recomputed(dialogues: Dialogues, model: Any) -> Dialogues:
    """The same tokens with a model's logits."""
    return [(tokens, model_logits(model, tokens)[-len(logits) :]) for tokens, logits in dialogues]


def model_logits(model: Any, tokens: list[int]) -> Array:
    with torch.no_grad():
        logits: Array = model(torch.tensor([tokens])).logits[0].float().numpy()
    return logits


def differences(dialogues: Dialogues, model: Any) -> Array:
    """All logits' distances from the model's, as shares of the largest one."""
    distances, largest = [], 0.0
    for tokens, logits in dialogues:
        expected = model_logits(model, tokens)
        distances.append((logits - expected[-len(logits) :]).ravel())
        largest = max(largest, float(np.abs(expected).max()))
    shares: Array = np.concatenate(distances) / largest
    return shares


def typical(shares: Array) -> float:
    return float(np.sqrt(np.mean(np.square(shares))))


def with_the_same_numbers(model: Any, weights: dict[str, Weight], compute: str) -> Any:
    """The model with the weights that the network has, and with activations rounded where the network rounds them."""
    values = {name: dequantized(weight, COMPUTE_TYPES[compute]) for name, weight in weights.items()}
    kept, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected
    assert all(name.endswith(("norm.weight", "bias", "lm_head.weight")) for name in kept)
    for name, weight in weights.items():
        if weight.format == "fp8":
            model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(lambda _, x: float8_rows(x[0]))
    return model


def float8_rows(x: torch.Tensor) -> torch.Tensor:
    """Each row in float8, stretched to its whole range."""
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize(
    ("family", "compute", "weight_format", "attention"),
    [(*case, "mask") for case in CASES]
    + [
        ("llama", "fp32", "fp32", "lengths"),
        ("llama", "bf16", "bf16", "lengths"),
        ("mistral", *["fp32"] * 2, "lengths"),
    ],
)
def test_parity_networks_compute_what_transformers_compute(
    family: str, compute: str, weight_format: str, attention: str, checkpoints: dict[str, Path]
) -> None:
    bound = BOUNDS[compute, weight_format]
    by_lengths = attention == "lengths"
    written = write_network(trt, checkpoints[family], compute, weight_format, SLOT_LEN, by_lengths=by_lengths)
    dialogues = play(written)
    assert len(dialogues) > NUM_SLOTS
    model = reference_model(checkpoints[family])
    from_plain = differences(dialogues, model)
    from_same = differences(dialogues, with_the_same_numbers(model, written.weights, compute))
    assert np.abs(from_same).max() < bound.largest
    assert typical(from_same) < bound.typical
    assert typical(from_plain) < bound.from_plain


def test_parity_bf16_costs_no_more_than_it_costs_transformers(checkpoints: dict[str, Path]) -> None:
    dialogues = play(write_network(trt, checkpoints["llama"], "bf16", "bf16", SLOT_LEN))
    exact, rough = reference_model(checkpoints["llama"]), reference_model(checkpoints["llama"]).bfloat16()
    cost_of_transformers = typical(differences(recomputed(dialogues, rough), exact))
    assert typical(differences(dialogues, exact)) < 1.2 * cost_of_transformers
