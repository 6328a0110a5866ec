"""Models of many families in one repository, behind one tritonserver: each computes what transformers does.

Their cores alone are loaded, as nothing in the text models goes by the family. What is asked of each at the same time:
streams, prompts in chunks, the blocks of a common beginning, several sequences of one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint
from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.e2e.clients import grpc_stream, make_inputs
from tests.e2e.cores import serve_cores
from tests.e2e.server import Server
from trident_ensemble.contract.layout import ModelNames
from trident_tools.main import main

#: Those that are most unlike each other.
CHOSEN = (
    "bloom", "cohere2", "falcon-alibi", "gemma3_text", "gpt2", "gpt_neox", "mpt", "olmo2", "phi3", "gpt_oss",
    "mixtral", "deepseek_v2",
)  # fmt: skip
CASES = [next(case for case in ALL if str(case) == chosen) for chosen in CHOSEN]
VOCAB_SIZE = 400
#: Blocks are of 32 tokens, so that each prompt but the first finds two of them.
COMMON, LENGTH, REUSED = 70, 110, 64
#: Tokens in a step, of all its sequences.
BUDGET = 48
NUM_PROMPTS, NUM_SEQUENCES, MAX_TOKENS = 4, 2, 16
#: Between the best token and the second, in parts of the largest logit: a hundred times the error of float32.
LEAST_GAP = 1e-4


@dataclass(frozen=True)
class Reply:
    """What one stream brought."""

    sequences: list[list[int]]
    num_cached: int
    num_parts: int


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family, by its name in the repository."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        f"m{number}": make_checkpoint(folder / f"m{number}", case.model_type, sizes=case.config)
        for number, case in enumerate(CASES)
    }


@pytest.fixture(scope="module")
def server(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("families")
    repository = folder / "repository"
    for name, checkpoint in checkpoints.items():
        command = ["build", str(checkpoint), "--repository", str(repository), "--name", name]
        limits = ["--max-num-tokens", str(BUDGET), "--max-num-seqs", "16", "--kv-cache", "4096t"]
        assert main([*command, *limits, "--engine", "openvino", "--precision", "fp32", "--quiet"]) == 0
    with serve_cores(repository, [ModelNames(name).core for name in checkpoints], folder) as running:
        yield running


def _expected(case: Case, folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates; no choice of it is a near tie."""
    kind: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": case.attention}
    model = AutoModelForCausalLM.from_pretrained(folder, **kind).eval()
    ids = torch.tensor(prompts)
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=None,
        pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    logits = torch.stack(found.logits)
    best = logits.topk(2).values
    assert ((best[..., 0] - best[..., 1]) > LEAST_GAP * logits.abs().max()).all(), "a near tie: draw other weights"
    expected: list[list[int]] = found.sequences[:, ids.shape[1] :].tolist()
    return expected


def _ask(server: Server, name: str, prompt: list[int]) -> Reply:
    fields = {
        "input_ids": prompt, "request_output_len": MAX_TOKENS, "ignore_eos": True, "streaming": True,
        "num_return_sequences": NUM_SEQUENCES, "stream_interval_ms": 0,
    }  # fmt: skip
    sequences: list[list[int]] = [[] for _ in range(NUM_SEQUENCES)]
    with grpc_stream(server.grpc, make_inputs(grpcclient, fields), ModelNames(name).core) as results:
        parts = list(results)
    for part in parts:
        indices = part.as_numpy("sequence_index").reshape(-1)
        for index, ids in zip(indices, part.as_numpy("output_ids")[0], strict=True):
            sequences[index] += ids.tolist()
    cached = [part.as_numpy("num_cached_tokens") for part in parts]
    return Reply(sequences, int(next(each for each in cached if each is not None).item()), len(parts))


def test_families_served_ids_equal_transformers_generate(checkpoints: dict[str, Path], server: Server) -> None:
    draw = np.random.default_rng(0)
    common = draw.integers(4, VOCAB_SIZE, COMMON).tolist()
    prompts = [common + draw.integers(4, VOCAB_SIZE, LENGTH - COMMON).tolist() for _ in range(NUM_PROMPTS)]
    with ThreadPoolExecutor(len(CASES) * NUM_PROMPTS) as pool:

        def ask(some: list[list[int]]) -> dict[str, list[Reply]]:
            jobs = {name: [pool.submit(_ask, server, name, prompt) for prompt in some] for name in checkpoints}
            return {name: [job.result(120) for job in replies] for name, replies in jobs.items()}

        first, rest = ask(prompts[:1]), ask(prompts[1:])
    for case, (name, folder) in zip(CASES, checkpoints.items(), strict=True):
        replies = [*first[name], *rest[name]]
        expected = _expected(case, folder, prompts)
        assert [reply.sequences for reply in replies] == [[ids] * NUM_SEQUENCES for ids in expected], str(case)
        assert [reply.num_cached for reply in replies] == [0, *[REUSED] * (NUM_PROMPTS - 1)], str(case)
        assert all(reply.num_parts > MAX_TOKENS // 2 for reply in replies)
