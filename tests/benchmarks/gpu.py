"""`make bench-gpu`: an engine compiled by TensorRT on the GPU at hand.

A random Llama in the shape of Llama-3.2-1B (or of Llama-3.1-8B). Measures: the build; generation steps, and what share
of the GPU's copy bandwidth they reach; the deployment under bursts of users, in turn with transformers' continuous
batching on the same GPU, prompts and lengths; time to first token and inter-token latency under `trident bench`; and
how far the logits of both are apart. What fails or cannot be run is named with its reason, and the rest goes on; the
file of `--json` is written anew after each part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tests.benchmarks.commands import work_folder
from tests.gpu import hardware


def main() -> int:
    """Run everything and show it; 1 if nothing could be built, 2 if there is no GPU or no TensorRT."""
    args = _parser().parse_args()
    reason = hardware.anything_missing()
    if reason:
        print(f"this needs an NVIDIA GPU and TensorRT: {reason}", file=sys.stderr)
        return 2
    # Not before: torch takes seconds to import.
    from tests.benchmarks.gpu_parts import run_parts  # noqa: PLC0415

    console = Console()
    with work_folder(args.work) as work:
        outcome = run_parts(args, work, console)
    for part, why in outcome["left out"].items():
        console.print(f"left out: {part}: {why}", markup=False)
    return 0 if "build" in outcome else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--shape", choices=("1b", "8b"), default="1b")
    parser.add_argument("--precision", choices=("bf16", "fp16"), default="bf16", help="of the computation")
    parser.add_argument("--build-option", action="append", default=[], help="a further option of `trident build`")
    parser.add_argument("--users", default="10,50,100")
    parser.add_argument("--rounds", type=int, default=5, help="of bursts, in turn")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--ramp", type=int, default=10, help="seconds, of trident bench")
    parser.add_argument("--duration", type=int, default=30, help="measured seconds a stage, of trident bench")
    parser.add_argument("--work", type=Path, help="folder for checkpoint and engine; 8b needs 40 GB (default: TMPDIR)")
    parser.add_argument("--json", type=Path, help="write everything here too, after each part")
    return parser


if __name__ == "__main__":
    sys.exit(main())
