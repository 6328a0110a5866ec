"""`make bench BENCH=sampling`: what choosing the tokens of a step costs, and which share of a 1B model's step that is.

100 sequences and a vocabulary of 128256, as Llama 3.2 has it, for each way to choose; every figure is the median of
rounds taken in turn. The step is one token more for each sequence, with about 128 tokens before it, computed by an
engine of Llama 3.2 1B's shape with random weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.backend.engine.driver import DrivenSequence, Driver
from tests.benchmarks.commands import work_folder
from tests.fakes.progress import SilentProgress
from trident_backend.engine.factory import load_engine
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.openvino.kernels import OpenVINOKernels
from trident_backend.engine.protocol import FloatArray, execute
from trident_backend.sampling.sampler import Sampler
from trident_backend.sequences.guide import MASK_WORD, RowMasks
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_compiler.engine_builder import build_engine
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.openvino.compiler import OpenVINOCompiler
from trident_compiler.planning.machine import this_machine
from trident_compiler.planning.memory_plan import LimitsRequest, parse_cache_size
from trident_preprocessing.chat.template_probe import write_template_profiles
from trident_tools.load.option_values import positive_number, whole_number

VOCAB_SIZE = 128_256
NUM_PROMPT_TOKENS = 1000
CONTEXT = 128

#: What is asked for, and of which logits.
MIXES: dict[str, tuple[SamplingParams, str]] = {
    "greedy": (SamplingParams(), "peaked"),
    "temperature": (SamplingParams(0.8), "peaked"),
    "temperature, flat": (SamplingParams(0.8), "flat"),
    "top_p 0.9": (SamplingParams(1.0, top_p=0.9), "peaked"),
    "top_p 0.9, flat": (SamplingParams(1.0, top_p=0.9), "flat"),
    "top_p 0.9, equals": (SamplingParams(1.0, top_p=0.9), "equals"),
    "top_k 50": (SamplingParams(1.0, top_k=50), "peaked"),
    "top_k 50, equals": (SamplingParams(1.0, top_k=50), "equals"),
    "top_k 50, top_p 0.9": (SamplingParams(1.0, top_k=50, top_p=0.9), "peaked"),
    "top_k 1000": (SamplingParams(1.0, top_k=1000), "peaked"),
    "min_p 0.05": (SamplingParams(1.0, min_p=0.05), "peaked"),
    "greedy, penalties": (SamplingParams(0.0, repetition_penalty=1.1, frequency_penalty=0.1), "peaked"),
    "greedy, 300 biases": (SamplingParams(logit_bias=tuple((7 * index, 1.0) for index in range(300))), "peaked"),
    "greedy, guides": (SamplingParams(), "peaked"),
    "greedy, log probs, top 5": (SamplingParams(log_probs=True, num_top_log_probs=5), "peaked"),
    "a bit of everything": (SamplingParams(), "peaked"),
}


def main() -> None:
    """Measure all mixes in turn, and the step."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=sampling", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=9)
    parser.add_argument("--sequences", type=whole_number(1), default=100)
    parser.add_argument("--only", help="mixes whose name begins so")
    parser.add_argument("--step-ms", type=positive_number, help="of the 1B model's step, instead of measuring it")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    console = Console()
    mixes = {name: mix for name, mix in MIXES.items() if name.startswith(args.only or "")}
    if not mixes:
        parser.error(f"--only {args.only}: no mix begins so")
    step_ms = args.step_ms or _step_ms(args.sequences, min(args.rounds, 5))
    figures = _measure(mixes, args.sequences, args.rounds)
    table = Table(
        "choice", "median ms", "share of a step", title=f"{args.sequences} x {VOCAB_SIZE}; step {step_ms:.0f} ms"
    )
    for name, milliseconds in figures.items():
        table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds / step_ms:.1%}")
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"step_ms": step_ms, "choices_ms": figures}, indent=2))


def _measure(mixes: dict[str, tuple[SamplingParams, str]], num_seqs: int, num_rounds: int) -> dict[str, float]:
    sampler, logits = Sampler(VOCAB_SIZE), np.empty((num_seqs, VOCAB_SIZE), np.float32)
    network_output = HostLogits(logits, OpenVINOKernels(VOCAB_SIZE))
    shapes = _logits(num_seqs)
    rows = {name: _rows(name, params, num_seqs) for name, (params, _) in mixes.items()}
    masks = _masks(num_seqs)
    seconds: dict[str, list[float]] = {name: [] for name in mixes}
    for number in track(range(num_rounds + 1), "sampling", transient=True):
        for name, (_, shape) in mixes.items():
            logits[:] = shapes[shape]
            start = time.perf_counter()
            sampler.choose(network_output, rows[name], masks if "guides" in name else None)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(each) * 1000 for name, each in seconds.items()}


def _logits(num_seqs: int) -> dict[str, FloatArray]:
    """As of a model that knows what comes (a dozen tokens have nearly all the mass), of one that does not, and with the
    equals that 16-bit arithmetic leaves."""
    rng = np.random.default_rng(0)
    flat = rng.normal(0, 1, (num_seqs, VOCAB_SIZE)).astype(np.float32)
    peaked = 2 * flat
    for row in peaked:
        row[rng.integers(0, VOCAB_SIZE, 50)] += np.linspace(16, 6, 50, dtype=np.float32)
    return {"flat": flat, "peaked": peaked, "equals": np.round(peaked * 16) / 16}


def _rows(name: str, params: SamplingParams, num_seqs: int) -> list[Row]:
    rng = np.random.default_rng(1)
    rows = []
    for index in range(num_seqs):
        each = params
        if name == "a bit of everything":
            options = [mix[0] for other, mix in MIXES.items() if other != name and "flat" not in other]
            each = options[index % len(options)]
        prompt = rng.permutation(VOCAB_SIZE)[:NUM_PROMPT_TOKENS].tolist()
        sequence = Sequence(index, [*prompt, *prompt[:100]], NUM_PROMPT_TOKENS, 1000, _seeded(each, index), frozenset())
        rows.append(Row(sequence, sequence.num_tokens))
    return rows


def _seeded(params: SamplingParams, seed: int) -> SamplingParams:
    return replace(params, seed=seed)


def _masks(num_seqs: int) -> RowMasks:
    """Half of the guides allow a few tokens, as where a key must follow; half all but a few, as inside a string."""
    rng = np.random.default_rng(2)
    allowed = rng.random((num_seqs, VOCAB_SIZE)) < np.where(np.arange(num_seqs) % 2, 0.002, 0.95)[:, None]
    words = np.packbits(allowed, axis=1, bitorder="little").view(np.uint32)
    assert words.shape[1] == VOCAB_SIZE // MASK_WORD
    return RowMasks(np.arange(num_seqs), words)


def _step_ms(num_seqs: int, num_rounds: int) -> float:
    """Milliseconds of one step of Llama 3.2 1B in this machine's best precision."""
    with work_folder() as work:
        checkpoint, engine_folder = work / "checkpoint", work / "engine"
        _make_checkpoint(checkpoint)
        opened, compiler = open_checkpoint(checkpoint), OpenVINOCompiler(this_machine())
        precision = compiler.precision(opened, None, None)
        cache = parse_cache_size(f"{2 * num_seqs * CONTEXT} tokens")
        # The cache must hold at least one sequence of the greatest length, also when there is only one.
        wanted = LimitsRequest(max_num_seqs=num_seqs, max_num_tokens=1024, max_seq_len=2 * CONTEXT, cache=cache)
        engine_folder.mkdir()
        plan = compiler.plan(opened, precision, wanted)
        build_engine(
            opened,
            engine_folder,
            precision,
            plan,
            compiler=compiler,
            describe_text=write_template_profiles,
            progress=SilentProgress(),
        )
        engine, _ = load_engine(engine_folder)
    rng = np.random.default_rng(0)
    driver = Driver(engine)
    sequences = [DrivenSequence(rng.integers(0, VOCAB_SIZE, 2 * CONTEXT).tolist()) for _ in range(num_seqs)]
    seconds = []
    for number in range(num_rounds + 1):
        for sequence in sequences:
            # What the cache holds makes no difference to the time.
            sequence.num_computed = CONTEXT + number
        batch = driver.batch([(sequence, 1) for sequence in sequences], num_seqs)
        start = time.perf_counter()
        execute(engine, batch)
        seconds.append(time.perf_counter() - start)
    engine.close()
    return median(seconds[1:]) * 1000


def _make_checkpoint(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    # Nothing is tokenized, but a checkpoint has a tokenizer.
    words = Tokenizer(models.WordLevel({"w": 0}, unk_token="w"))  # noqa: S106
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


if __name__ == "__main__":
    main()
