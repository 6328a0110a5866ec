"""Every family computes what transformers does: prompts in chunks beside each other, then decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import NUM_TOKENS, OpenVINOModel, read_model
from trident_compiler.openvino.compiler import computes_bf16
from trident_compiler.openvino.refusals import REFUSALS

pytestmark = pytest.mark.slow
SERVED = [case for case in ALL if not set(case.features) & set(REFUSALS)]
#: Decoders without experts, as each is usual. A rounded router may choose another one of two experts that are nearly as
#: good, so that mixtures in bfloat16 differ by whole experts.
IN_BF16 = (
    "bloom", "cohere", "falcon", "gemma", "gemma3_text", "glm4", "gpt2", "gpt_neox", "gptj", "granite", "llama",
    "mistral", "mpt", "nemotron", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip


def _expected(reference: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Two random sequences, and transformers' logits for them."""
    sequences = np.random.default_rng(0).integers(3, reference.config.vocab_size, (2, NUM_TOKENS))
    with torch.no_grad():
        return sequences, reference(torch.tensor(sequences)).logits.numpy()


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_family_computes_what_transformers_does(case: Case, tmp_path: Path) -> None:
    reference = case.save(tmp_path)
    model = OpenVINOModel(tmp_path, max_seq_len=case.max_seq_len)
    assert model.model.outline.features == case.features
    sequences, expected = _expected(reference)
    found = model.logits(sequences)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=(1e-4 if case.mixture else 1e-5) * largest)


@pytest.mark.skipif(not computes_bf16(), reason="this CPU cannot compute in bfloat16 (no AVX-512)")
@pytest.mark.parametrize("case", [case for case in SERVED if str(case) in IN_BF16], ids=str)
def test_family_computes_nearly_that_in_bfloat16(case: Case, tmp_path: Path) -> None:
    reference = case.save(tmp_path)
    sequences, expected = _expected(reference)
    found = OpenVINOModel(tmp_path, compute="bf16", weights="fp16").logits(sequences)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-2 * np.abs(expected).max())


@pytest.mark.parametrize("case", ALL, ids=str)
def test_family_is_declared_with_what_it_needs(case: Case, tmp_path: Path) -> None:
    case.save(tmp_path)
    model = read_model(tmp_path)
    assert set(model.outline.features) == set(case.features) <= set(model.family.features)
