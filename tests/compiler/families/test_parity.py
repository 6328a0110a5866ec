"""Every family computes what transformers does: prompts in chunks beside each other, then decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import NUM_TOKENS, OpenVINOModel, read_model
from trident_compiler.openvino.refusals import REFUSALS

pytestmark = pytest.mark.slow
SERVED = [case for case in ALL if not set(case.features) & set(REFUSALS)]


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_family_computes_what_transformers_does(case: Case, tmp_path: Path) -> None:
    reference = case.save(tmp_path)
    model = OpenVINOModel(tmp_path, max_seq_len=case.max_seq_len)
    assert model.model.outline.features == case.features
    vocab_size = reference.config.vocab_size
    sequences = np.random.default_rng(0).integers(3, vocab_size, (2, NUM_TOKENS))
    with torch.no_grad():
        expected = reference(torch.tensor(sequences)).logits.numpy()
    found = model.logits(sequences)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=(1e-4 if case.mixture else 1e-5) * largest)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_family_is_declared_with_what_it_needs(case: Case, tmp_path: Path) -> None:
    case.save(tmp_path)
    model = read_model(tmp_path)
    assert set(model.outline.features) == set(case.features) <= set(model.family.features)
