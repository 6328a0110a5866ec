"""`make bench` once, as small as it gets, and the network that it hands to openvino-genai."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.benchmarks import compare
from tests.benchmarks.genai_baseline import GenaiBaseline
from tests.checkpoints import make_checkpoint


def test_the_baseline_generates_what_transformers_does(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama")
    baseline = GenaiBaseline(checkpoint, tmp_path / "genai", 256, 2048, "f32")
    prompts = [[5, 17, 42, 8], [99, 3], [7] * 40]
    _, outputs = baseline.generate(prompts, 12)
    network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(12):
                ids = torch.cat((ids, network(ids).logits[:, -1:].argmax(-1)), dim=1)
        assert output == ids[0, len(prompt) :].tolist()


def test_one_sequence_is_measured_in_all_three(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    compare.main(
        [
            "--rounds", "1", "--sequences", "1", "--prompt-tokens", "8", "--output-tokens", "4", "--layers", "1",
            "--json", str(figures),
        ]
    )  # fmt: skip
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert len(written["rounds"]) == 1
    assert all(median > 0 for median, _, _ in written["figures"].values())
    assert {name[:3] for name in written["figures"]} >= {"(a)", "(b)", "(c)"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--sequences", "0"], "--sequences must be at least 1"),
        (["--output-tokens", "1"], "--output-tokens must be at least 2"),
        (["--prompt-tokens", "2040"], "at most 2048 together"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.main(arguments)
    assert said in capsys.readouterr().err
