"""Served greedy token ids equal transformers' generate, for every family, in a crowd and alone."""

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

NUM_PROMPTS = 20
MAX_TOKENS = 24
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


@pytest.mark.parametrize("family", FAMILIES)
def test_served_ids_equal_transformers_generate(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    prompts = _prompts()
    expected = _reference(checkpoint, prompts)
    # A budget far below the prompts' sum, so that they are computed in chunks beside each other.
    repository = build(checkpoint, tmp_path / "repository", "--max-num-tokens", "48", "--max-num-seqs", "32")

    with serve(repository, tmp_path / "log") as server:

        def ask(prompt: str) -> Answer:
            return ask_grpc(server.grpc, text_input=prompt, max_tokens=MAX_TOKENS, stream=True)

        with ThreadPoolExecutor(NUM_PROMPTS) as pool:
            together = list(pool.map(ask, prompts))
        alone = [ask(prompt) for prompt in prompts]

    assert [answer.output_ids for answer in together] == expected
    assert [answer.output_ids for answer in alone] == expected
    assert all(answer.num_finals == 1 for answer in together + alone)
    for answer, ids in zip(alone, expected, strict=True):
        assert answer.finish_reason == ("length" if len(ids) == MAX_TOKENS else "eos")


def test_a_prompt_of_three_budgets_is_answered_as_if_it_fitted_whole(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", FAMILIES[0])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = " ".join(random.Random(9).choices(WORDS, k=120))  # noqa: S311 (a test's choice)
    num_tokens = len(tokenizer(prompt).input_ids)
    answers = []
    third = num_tokens // 3
    assert num_tokens >= 3 * third > 3 * 64, "three steps at least, none of them small"
    for budget in (third, num_tokens + 8):
        name = f"budget-{budget}"
        repository = build(checkpoint, tmp_path / name, "--max-num-tokens", str(budget), "--max-num-seqs", "4")
        with serve(repository, tmp_path / f"{name}.log") as server:
            answers.append(ask_grpc(server.grpc, text_input=prompt, max_tokens=64, ignore_eos=True))
    assert [answer.num_input_tokens for answer in answers] == [num_tokens, num_tokens]
    assert answers[0].output_ids == answers[1].output_ids
    assert answers[0].text == answers[1].text
