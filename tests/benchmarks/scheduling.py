"""`make bench BENCH=scheduling`: what the scheduler's choices do, on the engine core without Triton.

The latency budget when long prompts arrive among running streams; the batching policies on a small KV cache, beside
static batching; prompt lookup alone and in a crowd; and what the scheduler itself costs, in CPU time of
its thread. Rounds are taken in turn, and every figure is a median over rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from tests.benchmarks.arrivals import ArrivalsRun, run_arrivals
from tests.benchmarks.checkpoint import NUM_LAYERS, VOCAB_SIZE, make_checkpoint
from tests.benchmarks.commands import work_folder
from tests.e2e.build import build
from trident_backend.core import EngineCore
from trident_backend.engine.factory import load_engine
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import Engine, EngineSpec, StepBatch, StepLogits
from trident_backend.sequences.choices import Choices
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings
from trident_tools.load.option_values import whole_number

Figures = dict[str, float]
Variant = Callable[[], Figures]

MAX_NUM_TOKENS = 2048
CHUNK = 256
_QUESTIONS = (
    "What is a for loop?",
    "What does len do?",
    "What is a list?",
    "What is a dictionary?",
    "What is a class?",
    "What does the with statement do?",
    "How do I open a file?",
    "What is a tuple?",
)
_DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"


class PoolOf:
    """An engine of which only some blocks are used, by fewer sequences."""

    def __init__(self, engine: Engine, num_blocks: int, max_num_seqs: int) -> None:
        self._engine = engine
        self.spec = replace(engine.spec, num_blocks=num_blocks, max_num_seqs=max_num_seqs)

    def submit(self, batch: StepBatch) -> None:
        self._engine.submit(batch)

    def collect(self) -> StepLogits:
        return self._engine.collect()

    def close(self) -> None:
        """The engine is another's."""


class NoEngine:
    """Costs nothing: every logit is 0, but that of one token."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._logits = np.zeros((spec.max_num_tokens, spec.vocab_size), np.float32)
        self._logits[:, 1] = 1
        self._num_rows = 0

    def submit(self, batch: StepBatch) -> None:
        self._num_rows = len(batch.logit_rows)

    def collect(self) -> HostLogits:
        return HostLogits(self._logits[: self._num_rows], NumpyKernels())

    def close(self) -> None:
        """Nothing to free."""


def main() -> None:
    """Run all parts and show medians."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=scheduling", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=3)
    parser.add_argument("--only", choices=("latency", "policies", "lookup", "cost"), help="one part alone")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--layers", type=whole_number(1), default=NUM_LAYERS, help="of the random network")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    console = Console()
    parts: dict[str, dict[str, Figures]] = {}
    with work_folder() as work:
        if args.only in (None, "cost"):
            parts["cost of the scheduler"] = _rounds(args.rounds, _cost_variants())
        if args.only in (None, "latency", "policies"):
            make_checkpoint(work / "checkpoint", args.layers)
            repository = build(
                work / "checkpoint", work / "repository", "--precision", args.precision, "--kv-cache", "65536 tokens",
                "--max-num-tokens", str(MAX_NUM_TOKENS), "--max-num-seqs", "128", "--max-seq-len", "2048",
            )  # fmt: skip
            engine, _ = load_engine(repository / "core" / "1")
            if args.only != "policies":
                parts["long prompts among running streams"] = _rounds(args.rounds, _latency_variants(engine))
            if args.only != "latency":
                parts["policies on a small KV cache"] = _rounds(args.rounds, _policy_variants(engine))
            engine.close()
        if args.only in (None, "lookup"):
            demo = build(_DEMO, work / "demo", "--precision", args.precision)
            engine, _ = load_engine(demo / "core" / "1")
            parts["prompt lookup, demo model"] = _rounds(args.rounds, _lookup_variants(engine))
            engine.close()
    for title, figures in parts.items():
        console.print(_table(title, figures))
    if args.json:
        args.json.write_text(json.dumps(parts, indent=2))


def _rounds(num_rounds: int, variants: dict[str, Variant]) -> dict[str, Figures]:
    rounds: dict[str, list[Figures]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(num_rounds + 1):
        # Each round begins with another, so that a drift of the machine's speed favours none; the first is a warm-up.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            figures = variants[name]()
            if number:
                rounds[name].append(figures)
    return {name: {key: median(one[key] for one in runs) for key in runs[0]} for name, runs in rounds.items()}


def _table(title: str, variants: dict[str, Figures]) -> Table:
    columns = list(dict.fromkeys(key for figures in variants.values() for key in figures))
    table = Table("", *columns, title=title)
    for name, figures in variants.items():
        table.add_row(name, *(f"{figures[key]:.3g}" if key in figures else "" for key in columns))
    return table


def _sequence(number: int, prompt: list[int], max_tokens: int, arrived_at: float = 0.0) -> Sequence:
    return Sequence(number, list(prompt), len(prompt), max_tokens, SamplingParams(), frozenset(), arrived_at)


def _random_prompt(rng: random.Random, num_tokens: int) -> list[int]:
    return rng.choices(range(VOCAB_SIZE), k=num_tokens)


def _latency_variants(engine: Engine) -> dict[str, Variant]:
    """8 streams run; six prompts of 1024 tokens arrive, one every 1.3 seconds."""

    def run(core: EngineCore) -> ArrivalsRun:
        rng = random.Random(1)  # noqa: S311 (prompts, not secrets)
        streams = [_sequence(number, _random_prompt(rng, 32), 400) for number in range(8)]
        prompts = [_sequence(8 + number, _random_prompt(rng, 1024), 4, 1.3 * (1 + number)) for number in range(6)]
        return run_arrivals(core, streams + prompts)

    def variant(settings: CoreSettings) -> Variant:
        # One core for all rounds, as a server has: its latency budget has learned what a step costs.
        core = EngineCore(engine, replace(settings, enable_kv_cache_reuse=False), time.monotonic)

        def once() -> Figures:
            outcome = run(core)
            return {
                "ITL p50 ms": outcome.gap_ms(range(8), 50),
                "ITL p95 ms": outcome.gap_ms(range(8), 95),
                "ITL p99 ms": outcome.gap_ms(range(8), 99),
                "TTFT p50 ms": outcome.first_token_ms(range(8, 14), 50),
                "TTFT p95 ms": outcome.first_token_ms(range(8, 14), 95),
            }

        return once

    return {
        "chunking off": variant(CoreSettings(token_budget=MAX_NUM_TOKENS)),
        f"token budget {CHUNK}": variant(CoreSettings(token_budget=CHUNK)),
        "target_itl_ms 200": variant(CoreSettings(target_itl_ms=200)),
        "target_itl_ms 100": variant(CoreSettings(target_itl_ms=100)),
        "target_itl_ms 60": variant(CoreSettings(target_itl_ms=60)),
    }


def _policy_variants(engine: Engine) -> dict[str, Variant]:
    """48 requests that may take 512 tokens and mostly end earlier, on a cache for 12 of full length."""
    spec = engine.spec
    pool = PoolOf(engine, 12 * (64 + 512) // spec.block_size, 32)

    def sequences() -> list[Sequence]:
        rng = random.Random(2)  # noqa: S311 (prompts, not secrets)
        made = []
        for number in range(48):
            one = _sequence(number, _random_prompt(rng, 64), 512)
            # Each token ends the text with a probability of one in a hundred.
            one.end_ids = frozenset(rng.sample(range(VOCAB_SIZE), VOCAB_SIZE // 100))
            made.append(one)
        return made

    def figures(outcome: ArrivalsRun, everyone: list[Sequence]) -> Figures:
        return {
            "output tokens/s": outcome.tokens_per_second,
            "TTFT p50 ms": outcome.first_token_ms(range(48), 50),
            "TTFT p95 ms": outcome.first_token_ms(range(48), 95),
            "preemptions": float(sum(one.num_preemptions for one in everyone)),
            "steps": float(outcome.num_steps),
        }

    def in_flight(policy: BatchSchedulerPolicy) -> Variant:
        def once() -> Figures:
            everyone = sequences()
            core = EngineCore(pool, CoreSettings(batch_scheduler_policy=policy), time.monotonic)
            return figures(run_arrivals(core, everyone), everyone)

        return once

    def static() -> Figures:
        """Twelve at a time, the next twelve when all of them have ended."""
        everyone = sequences()
        whole = ArrivalsRun()
        for first in range(0, 48, 12):
            core = EngineCore(pool, CoreSettings(), time.monotonic)
            part = run_arrivals(core, everyone[first : first + 12])
            whole.first_token.update({one: whole.seconds + value for one, value in part.first_token.items()})
            whole.seconds += part.seconds
            whole.num_output_tokens += part.num_output_tokens
            whole.num_steps += part.num_steps
        return figures(whole, everyone)

    return {"static batching": static, **{policy.value: in_flight(policy) for policy in BatchSchedulerPolicy}}


def _lookup_variants(engine: Engine) -> dict[str, Variant]:
    """Questions asked a second time in one conversation: the answer stands in the prompt, as in editing and quoting."""
    prompts = _asked_twice(engine)

    def variant(num_streams: int, max_draft_tokens: int) -> Variant:
        core = EngineCore(engine, CoreSettings(max_draft_tokens=max_draft_tokens), time.monotonic)

        def once() -> Figures:
            everyone = [_sequence(number, prompts[number % len(prompts)], 64) for number in range(num_streams)]
            outcome = run_arrivals(core, everyone)
            drafts = sum(one.num_draft_tokens for one in everyone)
            return {
                "output tokens/s": outcome.tokens_per_second,
                "steps": float(outcome.num_steps),
                "draft tokens": float(drafts),
                "acceptance": sum(one.num_accepted_tokens for one in everyone) / max(1, drafts),
            }

        return once

    return {
        f"{num_streams} streams, max_draft_tokens {drafts}": variant(num_streams, drafts)
        for num_streams in (1, 8, 64)
        for drafts in (0, 4)
    }


def _asked_twice(engine: Engine) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(_DEMO)
    core = EngineCore(engine, CoreSettings(), time.monotonic)
    conversations = [[{"role": "user", "content": question}] for question in _QUESTIONS]
    answers = [
        _sequence(number, tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False), 64)
        for number, one in enumerate(conversations)
    ]
    for answer in answers:
        answer.end_ids = frozenset([tokenizer.eos_token_id])
    run_arrivals(core, answers)
    prompts = []
    for one, answer in zip(conversations, answers, strict=True):
        text = tokenizer.decode(answer.token_ids[answer.num_prompt_tokens :], skip_special_tokens=True)
        again = [*one, {"role": "assistant", "content": text}, *one]
        prompts.append(tokenizer.apply_chat_template(again, add_generation_prompt=True, return_dict=False))
    return prompts


def _cost_variants() -> dict[str, Variant]:
    """256 running sequences, 128 tokens in, on an engine that costs nothing."""
    spec = EngineSpec(512, 256, 1024, 1024, 32, 8192)

    def variant(max_draft_tokens: int) -> Variant:
        def once() -> Figures:
            core = EngineCore(NoEngine(spec), CoreSettings(max_draft_tokens=max_draft_tokens), time.monotonic)
            scheduler, costs = core.scheduler, []
            for number in range(300):
                prompt = [(number * 7 + index) % 500 + 2 for index in range(128)]
                scheduler.add(_sequence(number, prompt, 300), 0.0)
            for step in range(200):
                began = time.thread_time()
                output = scheduler.schedule(0.05 * step)
                scheduled = time.thread_time()
                token_ids = [step % 400] * len(output.rows)
                middle = time.thread_time()
                scheduler.update(output, Choices(token_ids), 0.05 * step, 0.05)
                if len(output.chunks) == spec.max_num_seqs:
                    costs.append(time.thread_time() - middle + scheduled - began)
            return {"ms a step, median": median(costs) * 1000, "p95": float(np.percentile(costs, 95)) * 1000}

        return once

    return {"256 sequences": variant(0), "256 sequences, draft tokens": variant(4)}


if __name__ == "__main__":
    main()
