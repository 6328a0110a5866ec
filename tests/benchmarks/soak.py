"""`make bench BENCH=soak`: full load for ten minutes, with clients that leave at any moment.

Ends with an error unless every request got exactly one answer, all blocks are free again and memory has stayed flat.
Memory is judged in runs of two minutes or more: a server that has just started still grows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import tritonclient.grpc.aio as grpcclient
from rich.console import Console
from tritonclient.utils import InferenceServerException

from tests.benchmarks.commands import work_folder
from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.clients import make_inputs
from tests.e2e.server import Server, serve, until
from trident_tools.load.option_values import positive_number, whole_number

SAMPLE_EVERY_S = 5.0
#: Memory is flat when the last quarter's median is no more than this above the second quarter's.
GROWTH_ALLOWED = 0.03
#: Samples that a judgement on memory takes: two minutes' worth.
MIN_SAMPLES = 24
SETTLE_S = 15.0


@dataclass
class Soak:
    """What has happened so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    problems: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def main() -> int:
    """Run; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=soak", description=__doc__)
    parser.add_argument("--minutes", type=positive_number, default=10.0)
    parser.add_argument("--clients", type=whole_number(1), default=48)
    parser.add_argument("--seed", type=whole_number(0), default=1)
    args = parser.parse_args()
    console = Console()
    with work_folder() as work:
        checkpoint = make_checkpoint(work / "checkpoint", "llama")
        repository = build(
            checkpoint, work / "repository", "--max-num-seqs", "32", "--max-seq-len", "1024",
            "--kv-cache", "6000 tokens", "--max-num-tokens", "256", "--postprocessing-instances", "2",
            "--batch-scheduler-policy", "max_utilization", "--max-draft-tokens", "3", "--target-itl-ms", "50",
        )  # fmt: skip
        with serve(repository, work / "log") as server:
            soak = asyncio.run(_soak(server, args, console))
            until(lambda: server.num_active == 0 and server.num_used_blocks == 0, SETTLE_S, "every block to be free")
    has_grown, memory = judge_memory(soak.memory)
    if has_grown:
        soak.problems.append("memory has grown")
    console.print(f"{sum(soak.outcomes.values())} requests, {soak.num_tokens} tokens:", dict(soak.outcomes))
    console.print(f"memory: {memory}; all blocks free")
    for problem in soak.problems[:10]:
        console.print("[red]problem:[/red]", problem, markup=True)
    return 1 if soak.problems else 0


def judge_memory(samples: list[float]) -> tuple[bool, str]:
    """Return whether memory has grown, and what there is to say of it.

    Args:
        samples: MiB, `SAMPLE_EVERY_S` apart. Fewer than `MIN_SAMPLES` are shown and not judged.
    """
    if len(samples) < MIN_SAMPLES:
        last = f"{samples[-1]:.0f} MiB at the end" if samples else "no sample"
        return False, f"{last}, not judged in fewer than {MIN_SAMPLES * SAMPLE_EVERY_S:.0f} s (--minutes)"
    quarter = len(samples) // 4
    before, after = median(samples[quarter : 2 * quarter]), median(samples[-quarter:])
    return (
        after > before * (1 + GROWTH_ALLOWED),
        f"{before:.0f} MiB in the second quarter, {after:.0f} MiB in the last",
    )


async def _soak(server: Server, args: argparse.Namespace, console: Console) -> Soak:
    soak = Soak()
    end = time.monotonic() + 60 * args.minutes
    clients = [
        asyncio.create_task(_client(server, random.Random(args.seed + index), end, soak))  # noqa: S311
        for index in range(args.clients)
    ]
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(SAMPLE_EVERY_S, left))
        soak.memory.append(_memory_mib(server.process.pid))
        left = max(0.0, end - time.monotonic())
        console.print(f"{left:4.0f} s left, {soak.memory[-1]:.0f} MiB,", dict(soak.outcomes))
    await asyncio.gather(*clients)
    return soak


async def _client(server: Server, rng: random.Random, end: float, soak: Soak) -> None:
    async with grpcclient.InferenceServerClient(server.grpc) as client:
        while time.monotonic() < end:
            fields: dict[str, Any] = {
                "text_input": "a common beginning " * rng.randrange(4) + f"{rng.random()} " * rng.randrange(1, 20),
                "max_tokens": rng.randrange(1, 200),
                "stream": rng.random() < 0.8,
                "ignore_eos": rng.random() < 0.5,
                "tenant": rng.choice("abc"),
                "priority": rng.randrange(-2, 3),
            }
            if rng.random() < 0.1:
                fields["timeout_ms"] = rng.randrange(1, 2000)
            leaves_after = rng.expovariate(2.0) if rng.random() < 0.3 else None
            soak.outcomes[await _ask(client, fields, leaves_after, soak)] += 1


async def _ask(client: Any, fields: dict[str, Any], leaves_after: float | None, soak: Soak) -> str:
    """One request, to its end or until its client leaves: what became of it."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": "ensemble",
            "inputs": make_inputs(grpcclient, fields),
            "enable_empty_final_response": True,
        }

    answers = client.stream_infer(requests())
    num_finals, num_tokens, reported = 0, 0, 0

    async def read() -> str:
        nonlocal num_finals, num_tokens, reported
        async for result, error in answers:
            if error is not None:
                return _kind(str(error))
            response = result.get_response()
            if response.outputs:
                num_tokens += result.as_numpy("output_ids").size
                if result.as_numpy("finish_reason") is not None:
                    num_finals += 1
                    reported = int(result.as_numpy("num_output_tokens").reshape(-1)[0])
            if response.parameters["triton_final_response"].bool_param:
                return "answered"
        return "ended without an answer"

    try:
        outcome = await asyncio.wait_for(read(), leaves_after if leaves_after is not None else 120)
    except asyncio.TimeoutError:
        answers.cancel()
        outcome = "left" if leaves_after is not None else "never answered"
    except InferenceServerException as error:
        outcome = _kind(str(error))
    soak.num_tokens += num_tokens
    if outcome == "answered" and (num_finals != 1 or num_tokens != reported):
        soak.problems.append(f"{num_finals} ends, {num_tokens} of {reported} tokens: {fields}")
    if outcome not in ("answered", "left", "timed out"):
        soak.problems.append(f"{outcome}: {fields}")
    return outcome


def _kind(message: str) -> str:
    return "timed out" if "[UNAVAILABLE] timeout: " in message else message


def _memory_mib(root: int) -> float:
    """Resident memory of a process and all below it, without what they share counted twice."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    todo, total = [root], 0.0
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


if __name__ == "__main__":
    assert os.name == "posix"
    sys.exit(main())
