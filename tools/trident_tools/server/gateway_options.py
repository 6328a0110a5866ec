"""The options of `trident serve` that concern the gateway.

Owns the options and what follows where they contradict each other, or where the gateway is not installed. Never starts
it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from trident_ensemble.contract.errors import ServerError
from trident_tools.server.gateway_command import GatewayListen, missing_module

_HOST = "127.0.0.1"
_PORT, _PRIVATE_PORT = 8080, 8081
#: By these the gateway asks its clients who they are.
_ASKING = ("--keys", "--jwks-url")
_TLS = "--tls-cert"


def add_gateway_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("OpenAI's API, by a gateway beside the server")
    group.add_argument("--openai-port", type=int, metavar="N", help=f"default: {_PORT}")
    group.add_argument(
        "--openai-host",
        metavar="HOST",
        help=f"address to listen on; another than {_HOST} needs keys (default: {_HOST})",
    )
    group.add_argument(
        "--openai-private-port",
        type=int,
        metavar="N",
        help=f"for the gateway's metrics and probes, on this machine alone (default: {_PRIVATE_PORT})",
    )
    group.add_argument("--keys", type=Path, metavar="FILE", help="clients must have a key of these (`trident keys`)")
    group.add_argument(
        "--gateway-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="a further option of `trident gateway`, such as --gateway-option=--max-n=8; repeatable",
    )
    group.add_argument("--no-openai", action="store_true", help="serve without a gateway")


def gateway_listen(args: argparse.Namespace, say: Callable[[str], None]) -> GatewayListen | None:
    """Return where the gateway is to listen; None where there is to be none, and say why if nobody asked for that.

    Raises:
        ServerError: options contradict each other, or the gateway was asked for and is not installed.
    """
    asked = {
        "--openai-port": args.openai_port,
        "--openai-host": args.openai_host,
        "--openai-private-port": args.openai_private_port,
        "--keys": args.keys,
        "--gateway-option": args.gateway_option or None,
    }
    first_asked = next((option for option, value in asked.items() if value is not None), None)
    if args.no_openai:
        if first_asked is not None:
            raise ServerError(f"{first_asked}: is an option of the gateway, and --no-openai serves without it")
        return None
    missing = missing_module()
    if missing is not None:
        what = f"{missing} is not installed: pip install 'trident-llm[gateway]'"
        if first_asked is not None:
            raise ServerError(f"{first_asked}: {what}")
        say(f"Without OpenAI's API: {what}")
        return None
    return GatewayListen(
        args.openai_host or _HOST,
        _PORT if args.openai_port is None else args.openai_port,
        _PRIVATE_PORT if args.openai_private_port is None else args.openai_private_port,
    )


def passed_options(args: argparse.Namespace) -> list[str]:
    """Return the options that the gateway gets as they are."""
    return [*([] if args.keys is None else [f"--keys={args.keys}"]), *args.gateway_option]


def asks_for_keys(options: list[str]) -> bool:
    """Return whether a gateway with these options asks its clients who they are."""
    return any(option.partition("=")[0] in _ASKING for option in options)


def speaks_tls(options: list[str]) -> bool:
    """Return whether a gateway with these options is reached by https."""
    return any(option.partition("=")[0] == _TLS for option in options)
