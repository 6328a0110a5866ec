"""Served greedy token ids equal transformers' generate, for families and for a model exported to OpenVINO."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.checkpoints import FAMILIES, make_checkpoint
from tests.e2e.build import build
from tests.e2e.clients import Answer, ask_grpc
from tests.e2e.server import serve
from tests.openvino_exports import export

NUM_PROMPTS = 20
MAX_TOKENS = 24
BUDGET = 48
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "mix",
    "jugs",
]


def _prompts() -> list[str]:
    rng = random.Random(5)  # noqa: S311 (a test's choice)
    return [" ".join(rng.choices(WORDS, k=1 + 4 * index)) for index in range(NUM_PROMPTS)]


def _reference(checkpoint: Path, prompts: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    outputs = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False)
        outputs.append(generated[0, ids.shape[1] :].tolist())
    return outputs


@pytest.mark.parametrize(
    ("family", "exported"), [*((family, False) for family in FAMILIES), pytest.param("mistral", True, id="exported")]
)
def test_parity_served_ids_equal_transformers_generate(family: str, exported: bool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    prompts = _prompts()
    expected = _reference(checkpoint, prompts)
    # A budget far below the prompts' sum, so that they are computed in chunks beside each other, and below the longest
    # ones by far, so that each of these is computed in chunks when it is alone.
    options = ("--max-num-tokens", str(BUDGET), "--max-num-seqs", "32")
    source = export(checkpoint, tmp_path / "exported") if exported else checkpoint
    repository = build(source, tmp_path / "repository", *options)

    with serve(repository, tmp_path / "log") as server:

        def ask(prompt: str) -> Answer:
            return ask_grpc(server.grpc, text_input=prompt, max_tokens=MAX_TOKENS, stream=True)

        with ThreadPoolExecutor(NUM_PROMPTS) as pool:
            together = list(pool.map(ask, prompts))
        alone = [ask(prompt) for prompt in prompts]

    assert [answer.output_ids for answer in together] == expected
    assert [answer.output_ids for answer in alone] == expected
    assert all(answer.num_finals == 1 for answer in together + alone)
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(checkpoint)(prompts).input_ids]
    assert lengths[-1] > 3 * BUDGET
    assert [answer.num_input_tokens for answer in alone] == lengths
    for answer, ids in zip(alone, expected, strict=True):
        assert answer.finish_reason == ("length" if len(ids) == MAX_TOKENS else "eos")
