"""`trident serve`: a model repository, served by tritonserver until it is told to stop.

Owns the command's options and what is printed. Never watches a process itself.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console

from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest
from trident_ensemble.draining import ENVIRONMENT_VARIABLE, DrainNotice
from trident_tools.building.core_changes import changed_settings
from trident_tools.building.preflight import check_gateway_ports, check_ports, check_repository
from trident_tools.core_options import add_core_options
from trident_tools.server.announcement import announcement, openai_announcement
from trident_tools.server.built_models import find_models, read_model_card
from trident_tools.server.container import runs_in_container
from trident_tools.server.gateway_command import GatewayListen, gateway_command, is_gateway_ready
from trident_tools.server.gateway_keeper import keep_gateway
from trident_tools.server.gateway_options import add_gateway_options, gateway_listen, passed_options
from trident_tools.server.model_control import ModelControl
from trident_tools.server.overlay import overlay, served_settings, show_versions, write_bytecode
from trident_tools.server.restarts import Restarts
from trident_tools.server.server_process import ServerProcess
from trident_tools.server.serving import Front, NoFront, Serving
from trident_tools.server.signals import StopSignals
from trident_tools.server.stillness import StillnessWatch
from trident_tools.server.supervisor import EXIT_TIMEOUT_S, Supervisor
from trident_tools.server.triton_log import TritonLog
from trident_tools.server.triton_server import Listen, compose_backends, find_server, server_command, server_environment
from trident_tools.server.triton_status import TritonStatus
from trident_tools.switching.compatibility import check_next
from trident_tools.switching.follower import VersionFollower
from trident_tools.switching.running_server import RunningServer

#: For kube-proxy and load balancers to learn that a server leaves; the default of `trident gateway`, too.
DRAIN_DELAY_S = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="what `trident build` wrote")
    # Triton has no authentication, so it is reachable from other machines only if the user says so.
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: %(default)s)"
    )
    parser.add_argument("--http-port", type=int, default=8000, metavar="N", help="default: %(default)s")
    parser.add_argument("--grpc-port", type=int, default=8001, metavar="N", help="default: %(default)s")
    parser.add_argument("--metrics-port", type=int, default=8002, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--drain-delay",
        type=_seconds,
        metavar="S",
        help="seconds between a signal, from which on the server and the gateway call themselves not ready, and the "
        "first refusal, so that load balancers learn of it (default: 15 in a container, as --restart knows it; "
        "0 elsewhere)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="seconds for requests in flight after that (default: %(default)g)",
    )
    parser.add_argument(
        "--restart",
        action=argparse.BooleanOptionalAction,
        help="start a server that died again, after 1, 2, 4 ... 60 s; without it, or with --no-restart, the command "
        "ends with an error (default: on if standard output or error is a terminal and this is not a container, by "
        "/.dockerenv, /run/.containerenv, KUBERNETES_SERVICE_HOST or `container`; off elsewhere, where whatever runs "
        "the command starts it again)",
    )
    add_gateway_options(parser)
    add_core_options(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that the serving options are for, by the name of its ensemble (default: every model of the "
        "repository)",
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="switch to engines that `trident build --new-version` or `trident versions --use` put into the repository "
        "while it is served (default: off, as the engine that runs then changes with the repository, and both engines "
        "need memory while one takes the place of the other)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--verbose", action="store_true", help="show tritonserver's log here")
    output.add_argument("--log-file", type=Path, metavar="FILE", help="write tritonserver's log here")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("triton_option", nargs="*", help="after `--`: further options of tritonserver itself")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; return 0 after a clean drain.

    Raises:
        TridentError: the repository or a port cannot be used, or a server could not be started or kept running.
    """
    listen = Listen(args.host, args.http_port, args.grpc_port, args.metrics_port)
    models = check_repository(args.repository)
    console = Console(quiet=args.quiet, highlight=False, soft_wrap=True)
    door = gateway_listen(args, console.print)
    drain_delay_s = _drain_delay_s(args.drain_delay)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trident-serve-")))
            start = _starter(args, listen, models, console=console, signals=signals, folder=folder, stack=stack)
            log = None if args.verbose else stack.enter_context(_open_log(args.log_file))
        except OSError as error:
            raise ServerError(
                f"the temporary files of tritonserver cannot be written: {error}; TMPDIR names another folder for them"
            ) from error
        path = None if log is None else Path(log.name)
        serving, failed = None, True
        front: Front = NoFront()
        meanwhile = _nothing
        try:
            if door is not None:
                check_gateway_ports(door, listen)
                gateway = keep_gateway(
                    gateway_command(
                        door,
                        listen,
                        passed_options(args),
                        drain_delay_s=drain_delay_s,
                        drain_timeout_s=args.drain_timeout,
                        # The temporary log goes when the command ends well, and nobody looks at its size.
                        logs_requests=args.verbose or args.log_file is not None,
                    ),
                    log,
                    is_ready=partial(is_gateway_ready, door),
                    signals=signals,
                    drain_delay_s=drain_delay_s,
                    drain_timeout_s=args.drain_timeout,
                    announce=partial(_announce_gateway, args, door, console),
                    complain=_complain,
                )
                stack.callback(gateway.clean_up)
                gateway.start()
                front, meanwhile = gateway, gateway.tend
            serving = Serving(
                partial(start, log, meanwhile),
                Restarts(is_enabled=_restarts(args.restart)),
                signals,
                TritonLog(path),
                loading=partial(_loading, args, console),
                announce=lambda seconds: console.print(
                    announcement(args.repository, listen, models, seconds), markup=False
                ),
                say=console.print,
                complain=_complain,
                meanwhile=meanwhile,
                front=front,
                drain_delay_s=drain_delay_s,
            )
            status = serving.run()
            failed = False
        finally:
            if path is not None and args.log_file is None:
                # The log of a server that died is worth keeping even if the next one ended well.
                has_died = failed or (serving is not None and serving.num_starts > 1)
                if not (has_died and path.stat().st_size):
                    path.unlink()
        return status


def _announce_gateway(args: argparse.Namespace, door: GatewayListen, console: Console) -> None:
    cards = [read_model_card(args.repository, names) for names in find_models(args.repository)]
    card = next(card for card in cards if card is not None)  # the gateway has found one
    console.print(openai_announcement(door, card, passed_options(args)), markup=False)


def _nothing() -> None:
    """Look after no gateway."""


def _seconds(text: str) -> float:
    """Return a number of seconds that is not below 0."""
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 on")
    return seconds


def _drain_delay_s(asked: float | None) -> float:
    """Return the delay that was asked for, or else the one of the gateway where a load balancer is to be expected."""
    if asked is not None:
        return asked
    return DRAIN_DELAY_S if runs_in_container(os.environ) else 0.0


def _restarts(asked: bool | None) -> bool:
    """Return whether a server that dies is started again: as the option says, or else if no person would do it."""
    if asked is not None:
        return asked
    return (sys.stdout.isatty() or sys.stderr.isatty()) and not runs_in_container(os.environ)


def _complain(text: str) -> None:
    print(f"trident serve: {text}", file=sys.stderr, flush=True)


def _starter(
    args: argparse.Namespace,
    listen: Listen,
    models: Mapping[ModelNames, Manifest],
    *,
    console: Console,
    signals: StopSignals,
    folder: Path,
    stack: ExitStack,
) -> Callable[[IO[bytes] | None, Callable[[], None]], Supervisor]:
    """Prepare what all servers of this command have in common; return a function that starts one.

    What must end with the command is put on the stack. The function takes the log of the server, and what is to be done
    while the server is looked after.
    """
    server = find_server()
    backends = folder / "backends"
    backends.mkdir()
    compose_backends(server, backends)
    notice = folder / "drain"
    repository = args.repository.resolve()
    settings = changed_settings(args, repository, models)
    if args.follow:
        settings = {names: served_settings(repository, names) for names in models} | settings
        for names in models:
            write_bytecode(repository, names)
    followed = repository
    if settings:
        laid_over = folder / "repository"
        laid_over.mkdir()
        repository = overlay(repository, laid_over, settings)
    control_folder = folder / "control"
    control_folder.mkdir()
    control = ModelControl(control_folder, listen)
    command = [
        *server_command(server, repository, backends, listen, EXIT_TIMEOUT_S),
        *control.options(sorted(model.name for model in repository.iterdir() if model.is_dir())),
        *args.triton_option,
    ]
    environment = {**server_environment(server, os.environ), ENVIRONMENT_VARIABLE: str(notice)}

    running = RunningServer(repository, settings, listen, control)
    follower = VersionFollower(
        followed,
        models if args.follow else {},
        running,
        check=lambda names, old, new: check_next(settings[names], old, new),
        say=console.print,
        complain=_complain,
    )
    stack.callback(follower.server_ended)

    def start(log: IO[bytes] | None, meanwhile: Callable[[], None]) -> Supervisor:
        check_ports(listen)
        if args.follow:
            follower.server_ended()
        else:
            for names in settings:
                show_versions(repository, names, followed)
        status = TritonStatus(listen, control.headers)
        process = ServerProcess(command, environment, log)
        running.started(process.pid)
        stillness = StillnessWatch(status, control, complain=_complain, say=console.print)

        def while_ready() -> None:
            stillness.look()
            follower.look()

        return Supervisor(
            process,
            status,
            DrainNotice(notice),
            signals,
            drain_timeout_s=args.drain_timeout,
            say=console.print,
            withdraw_readiness=control.withdraw_readiness,
            meanwhile=meanwhile,
            while_ready=while_ready,
        )

    return start


def _loading(args: argparse.Namespace, console: Console) -> AbstractContextManager[object]:
    """Show that a server loads: at a terminal for as long as it does."""
    text = f"Loading {args.repository} ..."
    if console.is_terminal and not args.verbose:
        return console.status(text)
    console.print(text)
    return nullcontext()


def _open_log(path: Path | None) -> IO[bytes]:
    """Open the log file that was asked for, or a temporary one that is kept if the server fails."""
    if path is None:
        return tempfile.NamedTemporaryFile(prefix="tritonserver-", suffix=".log", delete=False)
    try:
        return path.open("wb")
    except OSError as error:
        raise ServerError(f"--log-file {path}: cannot be written: {error.strerror or error}") from error
