"""How a server is asked which models it serves.

Owns the questions to one server and how its answers are read. Never remembers an answer.
"""

from __future__ import annotations

import logging
from urllib.parse import quote

import msgspec

from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.layout import DRAINING
from trident_ensemble.contract.model_card import PARAMETER, parse_card
from trident_gateway.upstream.connection import ConnectionLostError
from trident_gateway.upstream.http_client import HttpClient
from trident_gateway.upstream.served_model import ServedModel

_MAX_CONFIG_BYTES = 4 << 20
_MAX_STATS_BYTES = 16 << 20
_MAX_MODELS = 1024
_TIMEOUT_S = 5.0
_UNAVAILABLE = 503
_log = logging.getLogger(__name__)


class _Statistic(msgspec.Struct):
    name: str


class _Statistics(msgspec.Struct):
    model_stats: list[_Statistic]


class _Value(msgspec.Struct):
    string_value: str = ""


class _Step(msgspec.Struct):
    model_name: str


class _Steps(msgspec.Struct):
    step: list[_Step] = msgspec.field(default_factory=list)


class _Config(msgspec.Struct):
    name: str
    parameters: dict[str, _Value] = msgspec.field(default_factory=dict)
    ensemble_scheduling: _Steps = msgspec.field(default_factory=_Steps)


async def read_models(client: HttpClient) -> list[ServedModel]:
    """Return those of a server's models that have a model card, which are the ones for clients.

    The index of Triton's model repository is not asked: it goes with the control of models, which `trident serve` keeps
    to itself. The statistics, too, name all models that are ready.


    A model that goes away meanwhile, or that was built by another release, is left out.

    Raises:
        ConnectError: there is no server.
        ConnectionLostError: the connection has failed.
        BodyTooLargeError: the server sends more than a configuration can be.
        asyncio.TimeoutError: the server does not answer in time.
    """
    status, body = await client.fetch(b"GET", "/v2/models/stats", max_bytes=_MAX_STATS_BYTES, timeout_s=_TIMEOUT_S)
    if status != 200:
        raise ConnectionLostError(f"the server answers {status} when asked for its models")
    try:
        names = {entry.name for entry in msgspec.json.decode(body, type=_Statistics).model_stats}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ConnectionLostError("the server does not say which models it has") from None
    models: list[ServedModel] = []
    for name in sorted(names)[:_MAX_MODELS]:
        path = f"/v2/models/{quote(name, safe='')}/config"
        status, body = await client.fetch(b"GET", path, max_bytes=_MAX_CONFIG_BYTES, timeout_s=_TIMEOUT_S)
        model = _read_config(name, body) if status == 200 else None
        if model is not None:
            models.append(model)
    return models


async def only_loads(client: HttpClient) -> bool:
    """Return whether a server calls itself not ready only because it loads something beside what it serves.

    Triton is not ready while any version of any model loads or ends, and after one could not be loaded, however well
    the others serve: so also while a new engine takes the place of another. A server that is to get no requests has
    been told to load the model that cannot be loaded, of whose version it then says that it is unavailable.

    Raises:
        ConnectError: there is no server.
        ConnectionLostError: the connection has failed.
        BodyTooLargeError: the server sends more than a configuration can be.
        asyncio.TimeoutError: the server does not answer in time.
    """
    path = f"/v2/models/{DRAINING}/versions/1/config"
    status, _ = await client.fetch(b"GET", path, max_bytes=_MAX_CONFIG_BYTES, timeout_s=_TIMEOUT_S)
    return status != _UNAVAILABLE and any(await read_models(client))


def _read_config(name: str, body: bytes) -> ServedModel | None:
    try:
        config = msgspec.json.decode(body, type=_Config)
        if PARAMETER not in config.parameters:
            return None
        card = parse_card(config.parameters[PARAMETER].string_value)
        preprocessing, core, *_ = (step.model_name for step in config.ensemble_scheduling.step)
    except (msgspec.MsgspecError, ValueError, RecursionError, ConfigError) as error:
        _log.warning("model %s is left out: its configuration cannot be read: %s", name, error)
        return None
    return ServedModel(card, name, preprocessing, core)
