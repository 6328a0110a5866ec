"""`trident gateway`: OpenAI's API in front of running servers.

Owns the command and the message at its start. Never reads an option, and never answers a request: the package
`trident_gateway` does.
"""

from __future__ import annotations

import argparse
import logging
import sys

from trident_ensemble.contract.errors import TridentError
from trident_gateway.settings import GatewaySettings
from trident_tools.gateway_settings.declaring import add_gateway_arguments
from trident_tools.gateway_settings.reading import read_settings
from trident_tools.server.openai_examples import base_url, openai_examples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_gateway_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; return 0 after a clean drain, 3 if requests were cut.

    Raises:
        TridentError: options contradict each other, or a file or a port cannot be used.
    """
    settings = read_settings(args)
    try:
        from trident_gateway.server import Gateway  # noqa: PLC0415 (what it needs is an extra of the package)
    except ModuleNotFoundError as error:
        raise TridentError(f"{error.name} is not installed: pip install 'trident-llm[gateway]'") from error
    log = logging.getLogger("trident_gateway")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("trident gateway: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.ERROR if settings.is_quiet else logging.INFO)

    def say(text: str) -> None:
        if not settings.is_quiet:
            print(text, flush=True)

    def announce(models: dict[str, bool], port: int) -> None:
        say(announcement(settings, models, port))

    return Gateway(settings, announce=announce, say=say, complain=_complain).run()


def announcement(settings: GatewaySettings, models: dict[str, bool], port: int) -> str:
    """Return what is printed once a model is there.

    Args:
        settings: of the gateway.
        models: name -> whether it takes messages.
        port: the public one.
    """
    url = base_url(settings.host, port, speaks_tls=settings.tls is not None)
    name = min(models)
    examples = openai_examples(url, name, takes_messages=models[name], asks_for_keys=settings.asks_for_keys)
    access = (
        "keys are asked for"
        if settings.asks_for_keys
        else "no keys: everybody on this machine may use it, and nobody else can reach it"
    )
    return f"OpenAI's API at {url} ({access})\n  models   {', '.join(sorted(models))}\nTry:\n{examples}"


def _complain(text: str) -> None:
    print(f"trident gateway: {text}", file=sys.stderr, flush=True)
