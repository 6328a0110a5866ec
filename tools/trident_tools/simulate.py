"""`trident simulate`: a deployment under load, simulated before there is one.

Owns the command's options and what it prints. The scheduler, the KV cache and the admission are those of the core; time
is simulated, and a model of its cost says how long a step takes. Never opens a connection.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trident_backend.sequences.step_time import StepTime
from trident_tools.core_options import add_core_options
from trident_tools.load.distributions import parse_distribution
from trident_tools.load.loads import Load
from trident_tools.load.option_values import list_of, number_from_zero, positive_number, whole_number
from trident_tools.load.output_files import output_file
from trident_tools.simulation.command_line import configuration, make_scenarios
from trident_tools.simulation.deployments import DEFAULT_BLOCK_SIZE
from trident_tools.simulation.figures import SimulatedFigures, figures
from trident_tools.simulation.hardware import GPUS, Efficiency
from trident_tools.simulation.model_shape import KV_BYTES, WEIGHT_BITS
from trident_tools.simulation.runner import run_scenarios
from trident_tools.simulation.simulation_report import print_tables, write_json
from trident_tools.simulation.simulator import Router

_DEFAULT_NUM_REQUESTS = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    _add_steps(parser.add_argument_group("what a step costs (one of the first three)"))
    _add_limits(parser.add_argument_group("limits"))
    _add_load(parser.add_argument_group("load"))
    # Options that depend on readers, texts or tenants are not simulated.
    add_core_options(parser, leave_out=_NOT_SIMULATED)
    parser.add_argument(
        "--processes", type=whole_number(1), metavar="N", help="simulate side by side (default: by cores)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all figures there")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the tables")


def _add_steps(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--from-bench", type=Path, metavar="FILE", help="as the server that `trident bench --json` saw")
    group.add_argument(
        "--step-time",
        metavar=",".join(coefficient.name.upper() for coefficient in fields(StepTime)),
        help="seconds of a step, of each token, pair of a query and a key, and row of logits, such as 5e-3,2e-5,1e-9",
    )
    group.add_argument("--gpu", choices=tuple(GPUS), help="as this GPU can at most; with --model")
    group.add_argument("--model", type=Path, metavar="PATH", help="a checkpoint's folder, or its config.json")
    group.add_argument("--weights", choices=tuple(WEIGHT_BITS), default="bf16", help="default: %(default)s")
    group.add_argument("--kv-cache-type", choices=tuple(KV_BYTES), default="bf16", help="default: %(default)s")
    group.add_argument(
        "--bandwidth", type=positive_number, metavar="BYTES/S", help="of the memory, instead of the GPU's"
    )
    group.add_argument(
        "--flops", type=positive_number, metavar="FLOP/S", help="of matrix products, instead of the GPU's"
    )
    group.add_argument("--memory", type=positive_number, metavar="BYTES", help="instead of the GPU's")
    usual = Efficiency()
    for name, share, doc in (
        ("bandwidth", usual.bandwidth, "of the bandwidth that kernels reach"),
        ("flops", usual.flops, "of the products that kernels reach"),
        ("memory", usual.memory, "of the memory that weights and KV cache may fill"),
    ):
        group.add_argument(
            f"--{name}-share", type=_share, default=share, metavar="X", help=f"{doc} (default: %(default)s)"
        )
    group.add_argument(
        "--step-overhead-ms",
        type=number_from_zero,
        default=1.0,
        metavar="MS",
        help="of every step on a GPU, for scheduling, sampling and starting kernels (default: %(default)s)",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine", type=Path, metavar="DIR", help="take limits and settings of a built repository, or of an engine"
    )
    group.add_argument(
        "--max-num-seqs", type=whole_number(1), metavar="N", help="sequences in one step (default: as built)"
    )
    group.add_argument(
        "--max-num-tokens", type=whole_number(1), metavar="N", help="tokens in one step (default: as built)"
    )
    group.add_argument(
        "--block-size",
        type=whole_number(1),
        metavar="N",
        help=f"of a KV block, tokens (default: as built, or {DEFAULT_BLOCK_SIZE})",
    )
    group.add_argument(
        "--kv-tokens",
        type=whole_number(1),
        metavar="N",
        help="that the KV cache holds (default: as built, or by memory)",
    )
    group.add_argument("--replicas", type=whole_number(1), default=1, metavar="N", help="cores (default: %(default)s)")
    group.add_argument(
        "--router",
        type=Router,
        choices=tuple(Router),
        default=Router.FEWEST_OPEN,
        metavar="|".join(router.value for router in Router),
        help="the replica with the fewest open requests, or each in turn (default: fewest-open)",
    )
    group.add_argument(
        "--price-per-hour", type=number_from_zero, metavar="P", help="of one replica, for the cost of tokens"
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    kind = group.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--rate", type=list_of(positive_number), metavar="R[,R...]", help="requests/s, at random (Poisson)"
    )
    kind.add_argument(
        "--users",
        type=list_of(whole_number(1)),
        metavar="N[,N...]",
        help="who send the next request when the last has ended",
    )
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--requests", type=whole_number(1), metavar="N", help=f"that count, per load (default: {_DEFAULT_NUM_REQUESTS})"
    )
    length.add_argument("--duration", type=positive_number, metavar="S", help="simulated seconds that count, per load")
    group.add_argument(
        "--ramp",
        type=number_from_zero,
        default=20.0,
        metavar="S",
        help="simulated seconds before requests count, in which users come one by one (default: %(default)s)",
    )
    group.add_argument(
        "--input-tokens",
        type=parse_distribution,
        default="128",
        metavar="D",
        help="128, normal:128:32, uniform:64:256 or lognormal:128:64 (default: %(default)s)",
    )
    group.add_argument(
        "--output-tokens", type=parse_distribution, default="128", metavar="D", help="likewise (default: %(default)s)"
    )
    group.add_argument(
        "--shared-prefix",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="tokens before each prompt, the same for all",
    )
    group.add_argument(
        "--overhead-ms",
        type=number_from_zero,
        metavar="MS",
        help="of a request outside the core (default: as --from-bench saw it, or 0)",
    )
    group.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Simulate the loads; return 0, or 130 after Ctrl-C, which keeps the loads that are done.

    Raises:
        TridentError: options contradict each other, or a file cannot be used.
    """
    if args.requests is None and args.duration is None:
        args.requests = _DEFAULT_NUM_REQUESTS
    scenarios = make_scenarios(args)
    rows: list[tuple[Load, SimulatedFigures]] = []
    status = 0
    progress = Console(stderr=True, quiet=args.quiet, highlight=False)
    try:
        with _bar(progress) as bar:
            task = bar.add_task("simulating", total=1.0)
            num_processes = args.processes or len(os.sched_getaffinity(0))
            done = run_scenarios(scenarios, num_processes, lambda share: bar.update(task, completed=share))
            for index, measured in done:
                rows.append((scenarios[index].load, figures(measured, args.price_per_hour)))
                if not progress.is_terminal:
                    progress.print(f"simulated {scenarios[index].load}")
    except KeyboardInterrupt:
        status = 130
    if rows:
        print_tables(Console(highlight=False), rows)
        if args.json is not None:
            write_json(args.json, configuration(args, scenarios[0]), rows)
    return status


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet or not console.is_terminal,
    )


def _share(text: str) -> float:
    share = positive_number(text)
    if share > 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at most 1")
    return share


_NOT_SIMULATED = (
    "pause_after_ms", "abandon_after_ms", "max_draft_tokens", "tenant_weights", "priority_aging_ms",
    "metrics_period_ms", "gpu",
)  # fmt: skip
