"""What `trident serve` prints once its models are ready: where they are, and what to type.

Owns the words. Never prints anything.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest
from trident_ensemble.contract.model_card import ModelCard
from trident_tools.server.gateway_command import GatewayListen
from trident_tools.server.gateway_options import asks_for_keys, speaks_tls
from trident_tools.server.openai_examples import base_url, openai_examples, typed_host
from trident_tools.server.triton_server import Listen

_DEFAULT_GRPC_PORT = 8001


def announcement(repository: Path, listen: Listen, models: Mapping[ModelNames, Manifest], seconds: float) -> str:
    """Return the text, of several lines.

    Args:
        repository: the one that is served.
        listen: where tritonserver listens.
        models: every model; the examples ask the first.
        seconds: that it took to become ready.
    """
    host = typed_host(listen.host)
    names, manifest = next(iter(models.items()))
    url = f"http://{host}:{listen.http_port}"
    generate = f"{url}/v2/models/{names.ensemble}/generate"
    options = (
        "" if listen.grpc_port == _DEFAULT_GRPC_PORT and host == "localhost" else f" --url {host}:{listen.grpc_port}"
    )
    if names != ModelNames():
        options += f" --model {names.ensemble}"
    prompt = (
        r'"messages": "[{\"role\": \"user\", \"content\": \"Hello!\"}]"'
        if _is_chat(manifest)
        else '"text_input": "The"'
    )
    return f"""\
Ready after {seconds:.1f} s: {repository}{_models(models)}
  HTTP     {url}
  gRPC     {host}:{listen.grpc_port}
  metrics  http://{host}:{listen.metrics_port}/metrics
Try:
  curl -s {generate} -d '{{{prompt}, "max_tokens": 32}}'
  curl -sN {generate}_stream -d '{{{prompt}, "max_tokens": 32, "stream": true}}'
  {_program()} chat{options}
Ctrl-C finishes the requests in flight and stops."""


def openai_announcement(listen: GatewayListen, card: ModelCard, options: list[str]) -> str:
    """Return what to type once the gateway takes requests, in several lines.

    Args:
        listen: where the gateway listens.
        card: of the model that the examples ask.
        options: that the gateway got as they are.
    """
    url = base_url(listen.host, listen.port, speaks_tls=speaks_tls(options))
    examples = openai_examples(url, card.name, takes_messages=card.takes_messages, asks_for_keys=asks_for_keys(options))
    return f"OpenAI's API: {url}\n{examples}"


def _is_chat(manifest: Manifest) -> bool:
    """Return whether a model was trained to answer, as one with a chat template is, and not to go on."""
    return f"{layout.TOKENIZER_FOLDER}/chat_template.jinja" in manifest.digests


def _models(models: Mapping[ModelNames, Manifest]) -> str:
    """Return the models with their limits; a single one follows the repository on its line."""
    if len(models) == 1:
        [manifest] = models.values()
        return f" ({_engine(manifest)})\n  limits   {_limits(manifest)}"
    lines = (
        f"\n  model    {names.ensemble} ({_engine(manifest)})\n           {_limits(manifest)}"
        for names, manifest in models.items()
    )
    return "".join(lines)


def _engine(manifest: Manifest) -> str:
    precision = manifest.precision
    return (
        f"{manifest.architecture.family}, {manifest.compiler.name}, {precision.compute}, weights {precision.weights}, "
        f"KV cache {precision.kv_cache}"
    )


def _limits(manifest: Manifest) -> str:
    limits = manifest.limits
    return (
        f"{limits.max_num_seqs} sequences at once, {limits.max_num_tokens} tokens in a step, "
        f"{limits.max_seq_len} tokens in a sequence"
    )


def _program() -> str:
    """Return the name of this command as it can be typed again."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "trident" and shutil.which("trident") != sys.argv[0] else "trident"
