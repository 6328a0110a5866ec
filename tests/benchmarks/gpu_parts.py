"""The parts of `make bench-gpu`, one after another.

Owns what is run with what limits, and what becomes of each part. Never prints a table itself: `gpu_tables` does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaConfig

from tests.backend.engine.driver import Driver, Floats
from tests.benchmarks import gpu_tables
from tests.benchmarks.gpu_bandwidth import copy_bandwidth
from tests.benchmarks.gpu_checkpoint import SHAPES, make_checkpoint, reading
from tests.benchmarks.gpu_decode import step_seconds
from tests.benchmarks.gpu_record import Outcome, Record
from tests.benchmarks.gpu_rounds import Figures, Load, parity, run_rounds, summarize
from tests.benchmarks.gpu_transformers import TransformersBaseline
from tests.benchmarks.load import Bench
from tests.e2e.server import serve
from tests.gpu import hardware
from trident_backend.engine.factory import load_engine

MAX_NUM_SEQS, MAX_SEQ_LEN, MAX_NUM_TOKENS = 128, 1024, 2048
CONTEXT = 512
NUM_SEQS = (1, 8, 64)
PARITY_TOKENS = 64


def run_parts(args: argparse.Namespace, work: Path, console: Console) -> Outcome:
    """Run everything, each part shown when it has ended; returns all figures.

    Args:
        args: of the command, see `gpu`.
        work: an empty folder.
        console: where tables go.
    """
    record = Record({"gpu": hardware.gpu_name(), "shape": args.shape}, args.json)
    config = make_checkpoint(work / "checkpoint", SHAPES[args.shape])
    with record.part("build, and with it all else"):
        record.outcome["build"] = _build(args, work)
        gpu_tables.show_build(record.outcome, console)
    if "build" not in record.outcome:
        return record.outcome
    with record.part("generation steps"):
        _decode(work / "repository", config, record.outcome)
    gpu_tables.show_steps(record.outcome, CONTEXT, console)
    logits = None
    with record.part("logits"):
        logits = _logits(work / "repository")
    with record.part("deployment"):
        _deployment(args, work, logits, record)
    gpu_tables.show_bursts(record.outcome, args, console)
    with record.part("trident bench"):
        bench = Bench(work / "repository", work, ["--ramp", str(args.ramp), "--duration", str(args.duration)])
        lengths = ["--input-tokens", str(args.prompt_tokens), "--output-tokens", str(args.output_tokens)]
        record.outcome["bench"] = bench.run([], ["--users", args.users, *lengths])
    gpu_tables.show_bench(record.outcome, console)
    return record.outcome


def _build(args: argparse.Namespace, work: Path) -> Outcome:
    words = [
        "build", str(work / "checkpoint"), "--repository", str(work / "repository"), "--engine", "tensorrt",
        "--precision", args.precision, "--max-num-seqs", str(MAX_NUM_SEQS), "--max-seq-len", str(MAX_SEQ_LEN),
        "--max-num-tokens", str(MAX_NUM_TOKENS), *args.build_option,
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trident_tools.main", *words], check=True)
    seconds = time.perf_counter() - start
    plans = [path.stat().st_size for path in (work / "repository").rglob("*.plan")]
    return {"seconds": seconds, "plan bytes": sum(plans)}


def _parity_tokens() -> list[int]:
    return Load(1, PARITY_TOKENS, 1, 32000).prompts(0)[0]


def _decode(repository: Path, config: LlamaConfig, outcome: Outcome) -> None:
    """Time generation steps."""
    bandwidth = outcome["copy bytes/s"] = copy_bandwidth()
    engine, manifest = load_engine(repository / "core" / "1")
    outcome["compiler"] = f"{manifest.compiler.name} {manifest.compiler.version} for {manifest.compiler.target}"
    outcome["precision"] = vars(manifest.precision)
    read = reading(config)
    outcome["steps"] = {}
    try:
        for num_seqs in NUM_SEQS:
            seconds = step_seconds(engine, num_seqs, CONTEXT, repeats=50)
            num_bytes = read.num_bytes(num_seqs, CONTEXT, manifest.precision.weights)
            outcome["steps"][num_seqs] = {
                "ms": 1000 * seconds,
                "tokens/s": num_seqs / seconds,
                "bytes/s": num_bytes / seconds,
                "share of copy bandwidth": num_bytes / seconds / bandwidth,
            }
    finally:
        engine.close()


def _logits(repository: Path) -> Floats:
    """Those that are compared with transformers'."""
    engine, _ = load_engine(repository / "core" / "1")
    try:
        return Driver(engine).whole(_parity_tokens())
    finally:
        engine.close()


def _deployment(args: argparse.Namespace, work: Path, logits: Floats | None, record: Record) -> None:
    """Parity of logits, and bursts of users, in turn with transformers on the same GPU where it can run."""
    vocab_size = SHAPES[args.shape]["vocab_size"]
    with ExitStack() as stack:
        server = stack.enter_context(serve(work / "repository", work / "log"))
        baseline = _baseline(work / "checkpoint", record, stack)
        if baseline is not None and logits is not None:
            with record.part("parity"):
                record.outcome["parity"] = parity(logits, baseline.logits(_parity_tokens()))
        bursts = record.outcome["bursts"] = {}
        for num_users in (int(text) for text in args.users.split(",")):
            load = Load(num_users, args.prompt_tokens, args.output_tokens, vocab_size)
            rounds: list[Figures] = []
            bursts[num_users] = {"rounds": rounds}
            with record.part(f"{num_users} users at once"):
                rounds.extend(run_rounds(server.grpc, baseline, load, args.rounds))
            if rounds:
                bursts[num_users]["summary"] = summarize(rounds)


def _baseline(checkpoint: Path, record: Record, stack: ExitStack) -> TransformersBaseline | None:
    """Transformers, ready to run beside the server; None where it cannot."""
    with record.part("transformers"):
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} has no CUDA, or finds no device")
        cache_tokens = MAX_NUM_SEQS * MAX_SEQ_LEN
        baseline = stack.enter_context(TransformersBaseline(checkpoint, "cuda", MAX_NUM_TOKENS, cache_tokens))
        record.outcome["transformers attention"] = baseline.attention
        return baseline
    return None
