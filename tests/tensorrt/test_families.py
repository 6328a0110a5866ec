"""Every family's network for TensorRT computes what transformers does: chunks of prompts and decoding, in slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import read_model
from tests.tensorrt.number_formats import Array
from tests.tensorrt.slot_networks import Chunk, SlotHost, write_model
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.tensorrt.refusals import REFUSALS

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")

SERVED = [case for case in ALL if not set(case.features) & set(REFUSALS)]
SLOT_LEN, NUM_SLOTS = 81, 5
#: Steps: for each slot that takes part, how many tokens of its sequence. Windows are shorter than what comes together,
#: and sequences get longer than what rotary factors were made for.
STEPS: tuple[dict[int, int], ...] = ({1: 40}, {3: 9, 1: 1}, {1: 27, 3: 59}, {3: 1, 1: 1}, {1: 1, 3: 1})
#: How far logits may be, as a share of the largest; products are added up in another order.
TOLERANCE, MIXTURE_TOLERANCE = 5e-5, 1e-4


def played(host: SlotHost, sequences: dict[int, list[int]]) -> dict[int, Array]:
    """The logits of all tokens of each sequence, by its slot."""
    past, logits = dict.fromkeys(sequences, 0), {slot: [] for slot in sequences}  # type: ignore[var-annotated]
    for step in STEPS:
        chunks = []
        for slot, count in step.items():
            chunks.append(Chunk(slot, past[slot], sequences[slot][past[slot] : past[slot] + count]))
            past[slot] += count
        for slot, rows in host.step(chunks).items():
            logits[slot].append(rows)
    return {slot: np.concatenate(rows) for slot, rows in logits.items()}


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_families_networks_compute_what_transformers_does(case: Case, tmp_path: Path) -> None:
    reference = case.save(tmp_path)
    model = read_model(tmp_path, case.max_seq_len)
    written = write_model(trt, model, TensorFiles(tmp_path), SLOT_LEN)
    random = np.random.default_rng(0)
    counts = {slot: sum(step.get(slot, 0) for step in STEPS) for slot in (1, 3)}
    sequences = {slot: random.integers(3, model.vocab_size, count).tolist() for slot, count in counts.items()}
    found = played(SlotHost(written.program, NUM_SLOTS), sequences)
    for slot, tokens in sequences.items():
        with torch.no_grad():
            expected = reference(torch.tensor([tokens])).logits[0].numpy()
        tolerance = MIXTURE_TOLERANCE if case.mixture else TOLERANCE
        np.testing.assert_allclose(found[slot], expected, rtol=0, atol=tolerance * np.abs(expected).max())
