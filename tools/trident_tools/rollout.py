"""`trident rollout`: move callers to a new version in stages, and back as soon as it is worse.

Owns the options of the command and what it prints. Never decides anything: the package `trident_tools.rollouts` does.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path

from trident_ensemble.contract.errors import TridentError
from trident_tools.load.option_values import list_of, number_from_zero, positive_number, whole_number
from trident_tools.load.output_files import output_file
from trident_tools.rollouts.gates import GateLimits
from trident_tools.rollouts.machine import OPEN_PHASES, Phase, Plan
from trident_tools.rollouts.reading import (
    read_canary_openers,
    read_http_route,
    read_plan,
    read_routing,
    read_sources,
    read_stable_opener,
    read_state_file,
)
from trident_tools.rollouts.routes_file import RoutesFile
from trident_tools.rollouts.state_file import RolloutState, StateFile
from trident_tools.server.signals import StopSignals

EXIT_DONE = 0
EXIT_UNDONE = 3
EXIT_INTERRUPTED = 130
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LIMITS = {
    "error_points": "points by which the canary's share of failed requests may be above the stable side's",
    "refusal_points": "the same of requests that are refused as wrong (400)",
    "gone_points": "the same of clients that leave before their answer begins",
    "ttft_ratio": "how many times the stable side's p95 of the time to the first part may be",
    "itl_ratio": "the same of the time between two parts of a stream",
    "length_points": "points by which the share of answers that end by their length may differ",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    start = actions.add_parser(
        "start", help="move callers to a canary, stage by stage; 3 is the status if it is undone"
    )
    status = actions.add_parser("status", help="show how far a rollout is")
    undo = actions.add_parser("undo", help="give all callers back to the stable side")
    finish = actions.add_parser("finish", help="make a canary that has all callers the stable side")
    for action in (start, status, undo):
        where = action.add_mutually_exclusive_group(required=True)
        where.add_argument("--routes", type=Path, metavar="FILE", help="the file that the gateways read")
        where.add_argument("--httproute", metavar="NAMESPACE/NAME", help="the HTTPRoute of a Kubernetes cluster")
        action.add_argument("--stable-backend", default="trident", metavar="NAME", help="default: %(default)s")
        action.add_argument("--canary-backend", default="trident-canary", metavar="NAME", help="default: %(default)s")
        action.add_argument(
            "--kube-api", metavar="URL", help="as `kubectl proxy` prints it (default: the pod's own cluster)"
        )
    finish.add_argument("--routes", type=Path, required=True, metavar="FILE", help="the file that the gateways read")
    for action in (start, status, undo, finish):
        action.add_argument(
            "--state",
            type=Path,
            metavar="FILE",
            help="where the state is kept (default: the routes file with .rollout behind it, or "
            "trident-rollout-NAMESPACE-NAME.json here)",
        )
    for action in (start, undo, finish):
        action.add_argument(
            "--textfile", type=output_file, metavar="FILE", help="write metrics into this file, for node_exporter"
        )
    _add_start(start)


def _add_start(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the canary")
    group.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="URL",
        help="with --routes the HTTP port of one of its servers, repeatable; with --httproute its gateway",
    )
    group.add_argument(
        "--to-metrics-url",
        action="append",
        metavar="URL",
        help="the server's metrics port, one for each --to in their order (default: its host, port 8002)",
    )
    group.add_argument(
        "--compare-with",
        metavar="URL",
        help="a server, with --httproute a gateway, of the stable side, whose digests must be the canary's (default: "
        "the first one in the routes file)",
    )
    group.add_argument(
        "--allow-other-digest", action="store_true", help="take a canary with another tokenizer or chat template"
    )
    group.add_argument(
        "--key-file", type=Path, metavar="FILE", help="a file with the key for the gateways of the trial"
    )
    group = parser.add_argument_group("the gateways that are watched, by their private ports")
    for option, meaning in (
        ("--gateway", "a gateway; with --httproute one of the stable side; repeatable"),
        ("--gateway-dns", "the same for every address of a name, looked up at each reading"),
        ("--canary-gateway", "with --httproute: a gateway of the canary; repeatable"),
        ("--canary-gateway-dns", "the same for every address of a name"),
    ):
        group.add_argument(option, action="append", default=[], metavar="URL", help=meaning)
    plan = Plan()
    group = parser.add_argument_group("stages and gates")
    group.add_argument(
        "--stages",
        type=list_of(positive_number),
        default=list(plan.stages),
        metavar="A,B,...",
        help="percent of callers (default: 1,10,50,100)",
    )
    for option, default, meaning in (
        ("--hold", plan.hold_s, "how long each stage is watched at least (default: 10m)"),
        ("--max-hold", None, "how long at most; a stage that cannot be judged by then is undone (default: six holds)"),
        ("--warm-up", plan.warm_up_s, "before each window, longer than nearly all answers take (default: 60s)"),
        ("--patience", plan.patience_s, "how long gateways may be silent or show no ready canary (default: 15s)"),
        ("--poll", 1.0, "between two looks at the gateways (default: 1s)"),
    ):
        group.add_argument(option, type=_duration, default=default, metavar="10m", help=meaning)
    group.add_argument(
        "--min-requests",
        type=whole_number(1),
        default=plan.min_requests,
        metavar="N",
        help="of the canary in a stage before the next one may begin (default: %(default)s)",
    )
    limits = GateLimits()
    for name, meaning in _LIMITS.items():
        group.add_argument(
            f"--max-{name.replace('_', '-')}",
            type=number_from_zero,
            default=getattr(limits, name),
            metavar="X",
            help=f"{meaning} (default: %(default)g)",
        )
    group = parser.add_argument_group("what it tells")
    group.add_argument("--metrics-port", type=int, metavar="N", help="show metrics here while it runs")
    group.add_argument("--metrics-host", default="127.0.0.1", metavar="HOST", help="default: %(default)s")
    group.add_argument("--quiet", action="store_true", help="print nothing but what was found in the end")
    parser.add_argument("--resume", action="store_true", help="go on with a rollout whose command has died")


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit status: 0 if it is done, 3 if it was undone, 130 after a signal.

    Raises:
        TridentError: it could not be done.
    """
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "start": _start, "status": _status, "undo": _undo, "finish": _finish,
    }  # fmt: skip
    try:
        return actions[args.action](args)
    except ModuleNotFoundError as error:
        raise TridentError(f"{error.name} is not installed: pip install 'trident-llm[gateway]'") from error


def _start(args: argparse.Namespace) -> int:
    # What reads metrics is an extra of the package.
    from trident_tools.rollouts import operations  # noqa: PLC0415
    from trident_tools.rollouts.gateways import Gateways  # noqa: PLC0415
    from trident_tools.rollouts.rollout_metrics import RolloutMetrics  # noqa: PLC0415
    from trident_tools.rollouts.runner import Surroundings  # noqa: PLC0415

    plan = read_plan(args)
    routing = read_routing(args)
    trial = operations.Trial(read_canary_openers(args), read_stable_opener(args), args.allow_other_digest)
    gateways = Gateways(read_sources(args))
    state_file = read_state_file(args)

    def say(text: str) -> None:
        if not args.quiet:
            print(text, flush=True)

    try:
        with StopSignals() as signals, state_file.locked():
            state = state_file.read()
            if args.resume:
                state = operations.resumable(state, routing.target)
                plan = read_plan(args, state.stages)
            undone = {} if state is None else dict(state.undone)
            metrics = RolloutMetrics(undone, args.textfile)
            if args.metrics_port is not None:
                metrics.serve(args.metrics_host, args.metrics_port)
            around = Surroundings(routing, gateways, state_file, metrics, say, lambda: signals.count, poll_s=args.poll)
            if args.resume and state is not None:
                ended = operations.resume(plan, around, state)
            else:
                ended = operations.start(plan, around, trial, undone)
    finally:
        gateways.close()
    return _announce_end(args, ended)


def _announce_end(args: argparse.Namespace, state: RolloutState) -> int:
    if state.phase != Phase.UNDONE:
        then = (
            "update the stable Deployment, then `trident rollout undo`"
            if args.routes is None
            else f"`trident rollout finish --routes {args.routes}` makes it the stable side"
        )
        print(f"Done: the canary has {state.weight:g} % of the callers. Next: {then}", flush=True)
        return EXIT_DONE
    print(f"Undone: {state.reason}. The canary has no callers. {state.text}".rstrip(), flush=True)
    return EXIT_INTERRUPTED if state.reason == "interrupted" else EXIT_UNDONE


def _status(args: argparse.Namespace) -> int:
    state_file = read_state_file(args)
    state = state_file.read()
    if state is None:
        print("There has been no rollout")
        return 0
    pid = state_file.writer()
    seen = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.seen_s))
    print(f"to        {', '.join(state.target)}")
    print(f"phase     {state.phase}{f', because of {state.reason}' if state.reason else ''}")
    print(f"stage     {state.stage + 1} of {','.join(f'{weight:g}' for weight in state.stages)} %")
    print(f"weight    {state.weight:g} %")
    nobody = "nobody, it is over"
    if state.phase in OPEN_PHASES:
        nobody = "nobody: start --resume goes on, undo takes the callers back"
    elif state.phase == "trial":
        nobody = "nobody: its command has died before it moved a caller, and can be started anew"
    print(f"watched   {f'by process {pid}' if pid is not None else nobody}; last at {seen}")
    if state.text:
        print(f"gates     {state.text}")
    return 0


def _undo(args: argparse.Namespace) -> int:
    from trident_tools.rollouts import operations  # noqa: PLC0415

    take_back = RoutesFile(args.routes).take_back if args.routes is not None else read_http_route(args).take_back
    state_file = read_state_file(args)
    print(operations.undo(state_file, take_back).capitalize())
    _write_textfile(args, state_file)
    return 0


def _finish(args: argparse.Namespace) -> int:
    from trident_tools.rollouts import operations  # noqa: PLC0415

    state_file = read_state_file(args)
    print(operations.finish(state_file, RoutesFile(args.routes)).capitalize())
    _write_textfile(args, state_file)
    return 0


def _write_textfile(args: argparse.Namespace, state_file: StateFile) -> None:
    """Write the metrics of a rollout that is over."""
    from trident_tools.rollouts.rollout_metrics import RolloutMetrics  # noqa: PLC0415

    state = state_file.read()
    RolloutMetrics({} if state is None else state.undone, args.textfile).show(0, 0.0)


def _duration(text: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|[smh])", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 10m, 90s or 1h")
    return float(found[1]) * _SECONDS[found[2]]
