"""`make bench BENCH=loop_costs`: what a step costs the engine loop's thread beside the network, part by part.

No engine computes anything here: penalties on 100 rows of logits with 2000-token prompts; the packing of 100 sequences
whose block tables are long; and scheduling while a prompt of 32k tokens comes in beside streams with draft tokens.
Figures are the thread's own CPU time, medians of rounds taken in turn; of scheduling it is the longest step of each
round.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from trident_backend.batch import pack
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.kv.blocks import BlockManager
from trident_backend.sampling.logits_processors import LogitsProcessors
from trident_backend.sampling.sampling_rows import row_traits
from trident_backend.scheduling.scheduler import Scheduler
from trident_backend.sequences.choices import Choices
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize, StepTimeModel
from trident_backend.sequences.steps import Row, ScheduledChunk, SchedulerOutput
from trident_ensemble.contract.settings import CoreSettings
from trident_tools.load.option_values import whole_number

NUM_SEQS = 100
BLOCK_SIZE = 32
PENALTIES = {
    "repetition": SamplingParams(repetition_penalty=1.1),
    "presence, frequency": SamplingParams(presence_penalty=0.1, frequency_penalty=0.1),
    "all three": SamplingParams(repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1),
}
CONTEXTS = (200, 2000, 8000)
LONG_PROMPT = 32_768
MAX_NUM_TOKENS = 2048

#: Gives the seconds of one step, or of the longest of several.
Part = Callable[[], float]


def main() -> None:
    """Measure all parts in turn."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=loop_costs", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=15)
    parser.add_argument(
        "--vocab-size", type=whole_number(1), default=128_256, help="of the logits that penalties change"
    )
    parser.add_argument("--only", help="parts whose name begins so")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    console = Console()
    parts = {name: part for name, part in _parts(args.vocab_size).items() if name.startswith(args.only or "")}
    if not parts:
        parser.error(f"--only {args.only}: no part begins so")
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in track(range(args.rounds + 1), "measuring", transient=True):
        for name, part in parts.items():
            measured = part()
            if number:  # the first is a warm-up
                seconds[name].append(measured)
    figures = {name: median(values) * 1000 for name, values in seconds.items()}
    table = Table("part of a step", "median ms", title=f"{NUM_SEQS} sequences")
    for name, milliseconds in figures.items():
        table.add_row(name, f"{milliseconds:.3f}")
    console.print(table)
    index_mb = _index_bytes() / 1e6
    console.print(f"the index of {LONG_PROMPT} tokens: {index_mb:.1f} MB")
    if args.json:
        args.json.write_text(json.dumps({"milliseconds": figures, "index_mb": index_mb}, indent=2))


def _parts(vocab_size: int) -> dict[str, Part]:
    logits = np.random.default_rng(0).normal(0, 3, (NUM_SEQS, vocab_size)).astype(np.float32)
    parts: dict[str, Part] = {
        f"penalties: {name}, 2000-token prompts": _penalties(params, logits) for name, params in PENALTIES.items()
    }
    parts |= {f"packing: {num_tokens} tokens each": _packing(num_tokens) for num_tokens in CONTEXTS}
    return {**parts, "scheduling: longest step of a 32k prompt": lambda: max(LongPrompt().seconds)}


def _penalties(params: SamplingParams, given: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Part:
    """The edits of the next step, on logits that the network has just written."""
    rng, vocab_size = np.random.default_rng(1), given.shape[1]
    sequences = [
        Sequence(number, rng.integers(0, vocab_size, 2000).tolist(), 2000, 1000, params, frozenset())
        for number in range(NUM_SEQS)
    ]
    edits, logits = LogitsProcessors(vocab_size), np.empty_like(given)

    def measure() -> float:
        logits[:] = given
        rows = [Row(sequence, sequence.num_tokens) for sequence in sequences]
        start = time.thread_time()
        edits.apply(HostLogits(logits, NumpyKernels()), rows, row_traits(rows), None)
        seconds = time.thread_time() - start
        for sequence in sequences:
            sequence.token_ids.append(int(rng.integers(0, vocab_size)))
        return seconds

    return measure


def _packing(num_tokens: int) -> Part:
    rng, chunks = np.random.default_rng(2), []
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    for number in range(NUM_SEQS):
        sequence = Sequence(number, [1] * num_tokens, num_tokens, 1, SamplingParams(), frozenset())
        sequence.num_computed_tokens = num_tokens - 1
        sequence.block_table.extend(rng.integers(0, NUM_SEQS * num_blocks, num_blocks).tolist())
        chunks.append(ScheduledChunk(sequence, 1, completes=True))
    output = SchedulerOutput(tuple(chunks), StepSize(NUM_SEQS, NUM_SEQS * num_tokens, NUM_SEQS))

    def measure() -> float:
        start = time.thread_time()
        pack(output, BLOCK_SIZE)
        return time.thread_time() - start

    return measure


class LongPrompt:
    """Streams with draft tokens, and a prompt of 32k tokens that comes in beside them and gets some too.

    The engine is supposed to take 10 ms a step and next to nothing for a token, so that draft tokens pay.

    Attributes:
        scheduler: as it is at the end.
        seconds: what scheduling took, step by step from the prompt's arrival on.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        cache = BlockManager(2 * LONG_PROMPT // BLOCK_SIZE, BLOCK_SIZE)
        settings = CoreSettings(max_draft_tokens=3)
        self.scheduler = Scheduler(cache, NUM_SEQS, MAX_NUM_TOKENS, settings, StepTimeModel())
        self.seconds: list[float] = []
        prompts = [rng.integers(0, 9, rng.integers(20, 60)).tolist() for _ in range(8)]
        prompts.append(rng.integers(0, 100_000, LONG_PROMPT).tolist())
        arrivals = {**{number: number for number in range(8)}, _ARRIVAL: 8}
        now = 0.0
        for number in range(_ARRIVAL + 100):
            if number in arrivals:
                prompt = prompts[arrivals[number]]
                self.scheduler.add(Sequence(number, prompt, len(prompt), 1000, SamplingParams(), frozenset()), now)
            start = time.thread_time()
            output = self.scheduler.schedule(now)
            if number >= _ARRIVAL:
                self.seconds.append(time.thread_time() - start)
            duration = 0.01 + 1e-6 * output.num_tokens
            now += duration
            tokens = rng.integers(0, 9, len(output.rows)).tolist()
            self.scheduler.update(output, Choices(tokens), now, duration)


def _index_bytes() -> int:
    """Return the bytes that the drafters hold at the end of that."""
    tracemalloc.start()
    try:
        kept = LongPrompt()
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    assert kept.scheduler.running
    of_drafters = snapshot.filter_traces([tracemalloc.Filter(inclusive=True, filename_pattern="*/ngram_drafter.py")])
    return sum(each.size for each in of_drafters.statistics("filename"))


#: The step in which the long prompt comes; what a step costs is known by then.
_ARRIVAL = 60

if __name__ == "__main__":
    main()
