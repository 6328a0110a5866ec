"""The command `trident` and its subcommands.

Owns their names, and the way in which an error leaves the program. A subcommand is a module with the functions of
`Subcommand`; it is imported when it is called, so that `trident --help` is quick. Never does the work of a command.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from typing import Protocol, cast

from trident_ensemble.contract.errors import TridentError

#: Command -> what `trident --help` says; the module is `trident_tools.<command>`, with an underscore behind a keyword.
COMMANDS = {
    "import": "make a checkpoint's folder of a GGUF file",
    "build": "compile a checkpoint into a Triton model repository",
    "families": "list the model types that can be built, and what each engine serves of them",
    "serve": "serve a model repository with tritonserver",
    "preflight": "check that this machine can serve a model repository, and serve nothing",
    "versions": "list the engines of a model repository, and choose the one that is served",
    "gateway": "speak OpenAI's API in front of running servers",
    "keys": "make, list and revoke the keys of a gateway",
    "rollout": "move callers to a new version in stages, and back when it is worse",
    "chat": "talk to a running server",
    "simulate": "predict latency, throughput and cost under a load",
    "bench": "put a running server under load and measure it",
}
#: The commands that need the packages of the extra `gateway`, and none of the project's other dependencies.
_OF_THE_GATEWAY = ("gateway", "keys")

#: Long enough for a destructor to end, too short for a user to notice.
_REPEAT_AFTER_S = 0.02


class Subcommand(Protocol):
    """The functions that the module of a subcommand provides."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of the command."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; return its exit status."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="trident", description="LLMs on NVIDIA's Triton Inference Server.")
    parser.add_argument("--version", action="version", version=f"trident {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in words[:1]:
            try:
                _load(name).add_arguments(subparser)
            except TridentError as error:
                print(f"trident {name}: {error}", file=sys.stderr)
                return 1
    args = parser.parse_args(words)
    hook_before, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        return _load(args.command).run(args)
    except TridentError as error:
        print(f"trident {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        sys.unraisablehook = hook_before


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that arrived in a destructor or a callback of C, whose exceptions never reach the command."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(_REPEAT_AFTER_S, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)


def _version() -> str:
    try:
        return metadata.version("trident-llm")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _load(name: str) -> Subcommand:
    """Import the module of a subcommand.

    Raises:
        TridentError: a package is missing that it needs, as in the image of the gateway, which has what that needs.
    """
    module = f"{name}_" if keyword.iskeyword(name) else name
    try:
        return cast("Subcommand", importlib.import_module(f"trident_tools.{module}"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trident_"):
            raise
        extra = "[gateway]" if name in _OF_THE_GATEWAY else ""
        raise TridentError(f"{error.name} is not installed: pip install 'trident-llm{extra}'") from error


if __name__ == "__main__":
    sys.exit(main())
