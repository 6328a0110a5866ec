"""The parts of `make bench-gpu` that need no GPU, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import LlamaConfig

from tests.backend.engine.driver import DrivenSequence, Driver, whole
from tests.benchmarks import gpu, gpu_parts
from tests.benchmarks.gpu_checkpoint import SHAPES, make_checkpoint, reading
from tests.benchmarks.gpu_decode import generation_step, step_seconds
from tests.benchmarks.gpu_record import Record
from tests.benchmarks.gpu_rounds import Load, parity, run_rounds, summarize
from tests.benchmarks.gpu_transformers import TransformersBaseline
from tests.benchmarks.load import Bench
from tests.e2e.build import build
from tests.e2e.server import serve
from tests.gpu import hardware
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import execute

SMALL: dict[str, Any] = {
    **SHAPES["1b"], "vocab_size": 500, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
}  # fmt: skip
LIMITS = ("--max-seq-len", "256", "--max-num-seqs", "8")


@pytest.mark.skipif(not hardware.cuda_missing(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["tests.benchmarks.gpu", "tests.gpu.hardware"])
def test_benchmark_without_a_gpu_one_sentence_says_so(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "GPU" in done.stderr


def test_benchmark_shapes_are_the_published_ones() -> None:
    """Parameters as Meta counts them: 1.24 and 8.03 billion."""
    for shape, expected in (("1b", 1_235_814_400), ("8b", 8_030_261_248)):
        config = LlamaConfig(**SHAPES[shape])
        read = reading(config)
        embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
        assert read.layers + read.head + embedding + norms == expected
    assert reading(LlamaConfig(**SHAPES["8b"])).kv_per_token * 2 == 128 << 10


def test_benchmark_bytes_of_a_step_are_weights_once_and_keys_and_values_of_each() -> None:
    read = reading(LlamaConfig(**SMALL))
    cache = 3 * 10 * (2 * 2 * 2 * 16) * 2
    assert read.num_bytes(3, 10, "bf16") == 2 * (read.layers + read.head) + cache
    assert read.num_bytes(3, 10, "int4") == 0.5 * read.layers + read.head + cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small shape, and its repository."""
    folder = tmp_path_factory.mktemp("small")
    make_checkpoint(folder / "checkpoint", SMALL)
    build(folder / "checkpoint", folder / "repository", "--engine", "openvino", *LIMITS)
    return folder


def test_benchmark_rounds_and_parity_on_a_cpu(folder: Path, tmp_path: Path) -> None:
    load = Load(num_users=4, prompt_tokens=20, output_tokens=6, vocab_size=500)
    tokens = load.prompts(7)[0]
    engine, _ = load_engine(folder / "repository" / "core" / "1")
    with TransformersBaseline(folder / "checkpoint", "cpu", 128, 2048) as baseline:
        close = parity(Driver(engine).whole(tokens), baseline.logits(tokens))
        with serve(folder / "repository", tmp_path / "log") as server:
            rounds = list(run_rounds(server.grpc, baseline, load, num_rounds=2))
            alone = list(run_rounds(server.grpc, None, load, num_rounds=1))
    assert close["mean difference / standard deviation"] < 0.05
    assert close["share of tokens with the same likeliest successor"] > 0.8
    assert len(rounds) == 2
    ratio, least, most = summarize(rounds)["trident / transformers, tokens/s"]
    assert 0 < least <= ratio <= most
    assert not any("transformers" in name for name in summarize(alone))


def test_benchmark_a_part_that_fails_is_named_and_nothing_measured_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    record = Record({"gpu": "none"}, file)
    with record.part("first"):
        record.outcome["first"] = 1
        raise ValueError("no [room]")
    with record.part("second"):
        record.outcome["second"] = 2
        assert "second" not in json.loads(file.read_text())
    expected = {"gpu": "none", "left out": {"first": "ValueError: no [room]"}, "first": 1, "second": 2}
    assert record.outcome == json.loads(file.read_text()) == expected
    with suppress(KeyboardInterrupt), record.part("third"):
        record.outcome["third"] = 3
        raise KeyboardInterrupt
    assert json.loads(file.read_text())["third"] == 3


def test_benchmark_all_parts_are_tried_and_what_there_is_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise OSError("no such thing")

    monkeypatch.setattr(hardware, "gpu_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_parts, "make_checkpoint", lambda *_: LlamaConfig(**SMALL))
    for name in ("copy_bandwidth", "load_engine", "serve"):
        monkeypatch.setattr(gpu_parts, name, fail)
    monkeypatch.setattr(Bench, "run", fail)
    args = gpu._parser().parse_args(["--json", str(tmp_path / "bench.json")])
    failing = gpu_parts.run_parts(args, tmp_path, Console())
    assert len(failing["left out"]) == 1
    monkeypatch.setattr(gpu_parts, "_build", lambda *_: {"seconds": 3, "plan bytes": 2**30})
    outcome = gpu_parts.run_parts(args, tmp_path, Console())
    assert list(outcome["left out"]) == ["generation steps", "logits", "deployment", "trident bench"]
    assert set(outcome["left out"].values()) == {"OSError: no such thing"}
    assert "built in 3 s, plans of 1.00 GiB" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text()) == outcome


def test_benchmark_a_generation_step_computes_the_last_token_of_its_contexts(folder: Path) -> None:
    engine, _ = load_engine(folder / "repository" / "core" / "1")
    step = generation_step(engine, 2, 40)
    sequences = [
        DrivenSequence([*Load(1, 39, 1, 500).prompts(index)[0], int(step.token_ids[index])], block_table=table.tolist())
        for index, table in enumerate(np.split(step.block_indices, 2))
    ]
    Driver(engine).step([(sequence, 39) for sequence in sequences])
    found = whole(execute(engine, step))
    for row, sequence in zip(found, sequences, strict=True):
        np.testing.assert_allclose(row, Driver(engine).whole(sequence.tokens)[-1], atol=1e-3)
    assert step_seconds(engine, 2, 40, repeats=3) > 0
    with pytest.raises(ValueError, match="no room"):
        generation_step(engine, 9, 40)
