"""What `make bench` refuses, and the network that it hands to openvino-genai."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.benchmarks import compare
from tests.benchmarks.genai_baseline import convert_llama
from tests.checkpoints import make_checkpoint

pytestmark = pytest.mark.slow


def test_compare_the_network_for_openvino_genai_computes_what_transformers_does(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama")
    network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 17, 42, 8, 99, 3, 250]])
    with torch.no_grad():
        expected = network(ids).logits.numpy()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    request = ov.Core().compile_model(convert_llama(checkpoint), "CPU", exact).create_infer_request()
    for first, end in ((0, 4), (4, 5), (5, 7)):  # what came before is in the network's state
        inputs = {
            "input_ids": ids[:, first:end].numpy(),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(first, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = request.infer(inputs)["logits"]
        np.testing.assert_allclose(logits, expected[:, first:end], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--sequences", "0"], "--sequences must be at least 1"),
        (["--output-tokens", "1"], "--output-tokens must be at least 2"),
        (["--prompt-tokens", "2040"], "at most 2048 together"),
    ],
)
def test_compare_what_cannot_be_measured_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.main(arguments)
    assert said in capsys.readouterr().err
