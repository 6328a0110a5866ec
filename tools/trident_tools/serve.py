"""`trident serve`: a model repository, served by tritonserver until it is told to stop.

Owns the command's options and what is printed. Never watches a process itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console

from trident_backend.engine.protocol import EngineSpec
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest
from trident_ensemble.contract.settings import CoreSettings, check_limits
from trident_ensemble.draining import ENVIRONMENT_VARIABLE, DrainNotice
from trident_tools.building.memory_use import check_memory, memory_use
from trident_tools.building.preflight import check_gpus, check_ports, check_repository
from trident_tools.core_options import add_core_options, asks_for_settings, core_settings
from trident_tools.server.announcement import announcement
from trident_tools.server.container import runs_in_container
from trident_tools.server.model_control import ModelControl
from trident_tools.server.overlay import overlay, served_settings
from trident_tools.server.restarts import Restarts
from trident_tools.server.server_process import ServerProcess
from trident_tools.server.serving import Serving
from trident_tools.server.signals import StopSignals
from trident_tools.server.supervisor import EXIT_TIMEOUT_S, Supervisor
from trident_tools.server.triton_log import TritonLog
from trident_tools.server.triton_server import Listen, compose_backends, find_server, server_command, server_environment
from trident_tools.server.triton_status import TritonStatus


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
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds for requests in flight after a signal (default: %(default)g)",
    )
    parser.add_argument(
        "--restart",
        action=argparse.BooleanOptionalAction,
        help="start a server that died again, after 1, 2, 4 ... 60 s; without it, or with --no-restart, the command "
        "ends with an error (default: on if standard output or error is a terminal and this is not a container, by "
        "/.dockerenv, /run/.containerenv, KUBERNETES_SERVICE_HOST or `container`; off elsewhere, where whatever runs "
        "the command starts it again)",
    )
    add_core_options(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that the serving options are for, by the name of its ensemble (default: every model of the "
        "repository)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--verbose", action="store_true", help="show tritonserver's log here")
    output.add_argument("--log-file", type=Path, metavar="FILE", help="write tritonserver's log here")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("triton_option", nargs="*", help="after `--`: further options of tritonserver itself")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; return 0 after a clean drain.

    Raises:
        TridentError: the repository or a port cannot be used, or the server could not be started or kept running.
    """
    listen = Listen(args.host, args.http_port, args.grpc_port, args.metrics_port)
    models = check_repository(args.repository)
    console = Console(quiet=args.quiet, highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trident-serve-")))
        start = _starter(args, listen, models, console=console, signals=signals, folder=folder)
        log = None if args.verbose else stack.enter_context(_open_log(args.log_file))
        serving = Serving(
            partial(start, log),
            Restarts(is_enabled=_restarts(args.restart)),
            signals,
            TritonLog(None if log is None else Path(log.name)),
            loading=partial(_loading, args, console),
            announce=lambda seconds: console.print(
                announcement(args.repository, listen, models, seconds), markup=False
            ),
            say=console.print,
            complain=_complain,
        )
        failed = True
        try:
            status = serving.run()
            failed = False
        finally:
            if log is not None and args.log_file is None:
                # The log of a server that died is worth keeping even if the next one ended well.
                is_wanted = (failed or serving.num_starts > 1) and Path(log.name).stat().st_size
                if not is_wanted:
                    Path(log.name).unlink()
        return status


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
) -> Callable[[IO[bytes] | None], Supervisor]:
    """Prepare what all servers of this command have in common; return a function that starts one."""
    server = find_server()
    backends = folder / "backends"
    backends.mkdir()
    compose_backends(server, backends)
    notice = folder / "drain"
    repository = args.repository.resolve()
    changed = _changed_settings(args, repository, models)
    if changed:
        laid_over = folder / "repository"
        laid_over.mkdir()
        repository = overlay(repository, laid_over, changed)
    control_folder = folder / "control"
    control_folder.mkdir()
    control = ModelControl(control_folder, listen)
    command = [
        *server_command(server, repository, backends, listen, EXIT_TIMEOUT_S),
        *control.options(sorted(model.name for model in repository.iterdir() if model.is_dir())),
        *args.triton_option,
    ]
    environment = {**server_environment(server, os.environ), ENVIRONMENT_VARIABLE: str(notice)}

    def start(log: IO[bytes] | None) -> Supervisor:
        check_ports(listen)
        return Supervisor(
            ServerProcess(command, environment, log),
            TritonStatus(listen, control.headers),
            DrainNotice(notice),
            signals,
            drain_timeout_s=args.drain_timeout,
            say=console.print,
            withdraw_readiness=control.withdraw_readiness,
        )

    return start


def _changed_settings(
    args: argparse.Namespace, repository: Path, models: Mapping[ModelNames, Manifest]
) -> dict[ModelNames, CoreSettings]:
    """Return the settings of the cores that options change, after a check that all engines can be served with theirs.

    Raises:
        ServerError: `--model` is not a model of the repository, or is given for nothing; GPUs do not fit an engine; or
            memory does not hold all engines.
        ConfigError: an engine cannot serve its settings.
    """
    if args.model is not None and args.model not in {names.ensemble for names in models}:
        raise ServerError(f"--model {args.model}: the repository has {', '.join(names.ensemble for names in models)}")
    if args.model is not None and not asks_for_settings(args):
        raise ServerError("--model: says which model the serving options are for, and there are none")
    changed, uses = {}, []
    for names, manifest in models.items():
        settings = served_settings(repository, names)
        if asks_for_settings(args) and args.model in {None, names.ensemble}:
            settings = changed[names] = core_settings(args, settings)
        check_limits(settings, EngineSpec.from_manifest(manifest))
        check_gpus(settings.gpu, manifest)
        uses.append(memory_use(names.ensemble, manifest, settings.gpu))
    check_memory(uses)
    return changed


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
