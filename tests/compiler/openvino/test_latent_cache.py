"""A quantized cache whose values are shorter than its keys, as latent attention has it, is read as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compiler.families.cases.deepseek import CASES
from tests.compiler.families.openvino_model import NUM_TOKENS, OpenVINOModel

pytestmark = pytest.mark.slow


def test_latent_cache_in_eight_bits_decodes_as_it_reads_prompts(tmp_path: Path) -> None:
    reference = CASES[0].save(tmp_path)
    sequences = np.random.default_rng(0).integers(3, reference.config.vocab_size, (2, NUM_TOKENS))
    with torch.no_grad():
        expected = reference(torch.tensor(sequences)).logits.numpy()
    found = OpenVINOModel(tmp_path, kv_cache="u8").logits(sequences)
    errors = np.abs(found - expected).max(axis=2) / np.abs(expected).max()
    # By the median token: what eight bits lose may choose another expert for one.
    assert np.median(errors[:, :40]) < 0.02, "the first chunk"
    assert np.median(errors[:, 70:]) < 0.02, "the steps of one token"
