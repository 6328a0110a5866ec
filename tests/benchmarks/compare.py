"""`make bench`: the engine loop, the whole deployment, and openvino-genai, in turn on one machine.

A random Llama of 12 layers x 768 (12 heads, 4 KV heads, vocabulary 32000), bf16 or fp32; 50 sequences, 128 tokens in,
64 out.
Machines are noisy: every figure is the median of rounds taken in turn, and ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
from collections.abc import Callable
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.benchmarks.checkpoint import MAX_LENGTH, NUM_LAYERS, VOCAB_SIZE, make_checkpoint
from tests.benchmarks.commands import work_folder
from tests.benchmarks.engine_loop import EngineLoopBench
from tests.benchmarks.genai_baseline import GenaiBaseline
from tests.benchmarks.served import run_served
from tests.e2e.build import build
from tests.e2e.server import serve
from trident_compiler.openvino.compiler import computes_bf16

MAX_NUM_TOKENS = 1024
_FASTER = "bf16" if computes_bf16() else "fp32"


def main(arguments: list[str] | None = None) -> None:
    """Run all three in turn and show medians and ratios."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=_FASTER, help="of all three")
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="of the network")
    parser.add_argument("--skip-genai", action="store_true", help="leave out the comparison with openvino-genai")
    parser.add_argument("--build-option", action="append", default=[], help="a further option of `trident build`")
    parser.add_argument("--stream-interval-ms", type=int, help="of the streams; default: the server's")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    _check(parser, args)
    console = Console()
    with work_folder() as work:
        rounds = _measure(args, work, console)
    figures = _summarize(rounds, args.sequences * args.output_tokens)
    table = Table("figure", "median", "min", "max", title=f"{args.sequences} sequences, {machine()}")
    for figure, values in figures.items():
        table.add_row(figure, *(f"{value:.3g}" if value < 10 else f"{value:.0f}" for value in values))
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "figures": figures, "rounds": rounds}, indent=2))


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot be measured: `outside_share` is of steps that generate, and these follow a first token."""
    least = {"rounds": 1, "sequences": 1, "prompt_tokens": 1, "output_tokens": 2, "layers": 1}
    for name, value in least.items():
        if getattr(args, name) < value:
            parser.error(f"--{name.replace('_', '-')} must be at least {value}")
    if args.prompt_tokens + args.output_tokens > MAX_LENGTH:
        parser.error(f"--prompt-tokens and --output-tokens must be at most {MAX_LENGTH} together")


def _measure(args: argparse.Namespace, work: Path, console: Console) -> list[dict[str, float]]:
    checkpoint = work / "checkpoint"
    make_checkpoint(checkpoint, args.layers)
    # Twice what the sequences fill, and room for one of the greatest length, which a plan asks for.
    cache_tokens = max(2 * args.sequences * (args.prompt_tokens + args.output_tokens), MAX_LENGTH)
    repository = build(
        checkpoint, work / "repository", "--precision", args.precision, "--kv-cache", f"{cache_tokens} tokens",
        "--max-num-tokens", str(MAX_NUM_TOKENS), "--max-num-seqs", "128", "--max-seq-len", str(MAX_LENGTH),
        *args.build_option,
    )  # fmt: skip
    loop = EngineLoopBench(repository / "core" / "1")
    genai = None
    if not args.skip_genai:
        hint = {"bf16": "bf16", "fp32": "f32"}[args.precision]
        genai = GenaiBaseline(checkpoint, work / "genai", MAX_NUM_TOKENS, cache_tokens, hint)
    rounds = []
    with serve(repository, work / "log") as server:
        for number in range(args.rounds + 1):
            rng = random.Random(number)  # noqa: S311 (prompts, not secrets)
            prompts = [rng.choices(range(VOCAB_SIZE), k=args.prompt_tokens) for _ in range(args.sequences)]
            texts = [" ".join(f"w{token}" for token in prompt) for prompt in prompts]
            figures: dict[str, float] = {}

            def run_loop(prompts: list[list[int]] = prompts, figures: dict[str, float] = figures) -> None:
                run = loop.run(prompts, args.output_tokens)
                figures.update(loop_s=run.seconds, outside_share=run.outside_share)

            def run_whole(texts: list[str] = texts, figures: dict[str, float] = figures) -> None:
                interval = args.stream_interval_ms
                fields = {} if interval is None else {"stream_interval_ms": interval}
                run = run_served(server.grpc, texts, args.output_tokens, **fields)
                figures["served_s"] = run.seconds
                figures["served_ttft_p50_s"] = median(run.first_token_seconds)
                figures["tokens_per_response"] = args.sequences * args.output_tokens / run.num_responses

            def run_genai(prompts: list[list[int]] = prompts, figures: dict[str, float] = figures) -> None:
                if genai is not None:
                    figures["genai_s"] = genai.run(prompts, args.output_tokens)

            turns: list[Callable[[], None]] = [run_loop, run_whole, run_genai]
            # Each round begins with another, so that a drift of the machine's speed favours none.
            for turn in turns[number % 3 :] + turns[: number % 3]:
                turn()
            console.print(f"{'warm-up' if number == 0 else number}:", figures)
            rounds.append(figures)
    return rounds[1:]


def _summarize(rounds: list[dict[str, float]], num_tokens: int) -> dict[str, tuple[float, float, float]]:
    def spread(values: list[float]) -> tuple[float, float, float]:
        return median(values), min(values), max(values)

    figures = {
        "(a) engine loop, output tokens/s": spread([num_tokens / one["loop_s"] for one in rounds]),
        "(b) through tritonserver, output tokens/s": spread([num_tokens / one["served_s"] for one in rounds]),
        "(b) / (a)": spread([one["loop_s"] / one["served_s"] for one in rounds]),
        "share of a step in which the engine has none": spread([one["outside_share"] for one in rounds]),
        "(b) time to first token p50, s": spread([one["served_ttft_p50_s"] for one in rounds]),
        "(b) tokens per response": spread([one["tokens_per_response"] for one in rounds]),
    }
    if "genai_s" in rounds[0]:
        figures["(c) openvino-genai, output tokens/s"] = spread([num_tokens / one["genai_s"] for one in rounds])
        figures["(a) / (c)"] = spread([one["genai_s"] / one["loop_s"] for one in rounds])
    return figures


def machine() -> str:
    """Return how many cores this machine has, and which."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor()}"


if __name__ == "__main__":
    main()
