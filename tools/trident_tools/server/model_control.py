"""Triton's control of models, reserved for this command and used to withdraw a server's readiness and to give it back.

Triton calls a server ready while every model that was to be loaded is loaded. So a server that drains is asked to load
a model that cannot be loaded: it goes on answering its requests, and /v2/health/ready says no. Triton never forgets a
model that it could not load, so to call itself ready again the server is asked to load one by the same name that can
be: another name for one of its own models, which takes no process and no memory. All this takes the model control API,
with which any client could unload models, so a secret that only this command knows guards it.

Owns that model and the secret. Never decides when a server is ready.
"""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trident_ensemble.contract import layout
from trident_tools.server.triton_server import Listen, local_address

_HEADER = "trident-control"
_CONFIG = f"""\
name: "{layout.DRAINING}"
backend: "not_ready_while_draining"
input [{{ name: "none" data_type: TYPE_INT32 dims: [1] }}]
output [{{ name: "none" data_type: TYPE_INT32 dims: [1] }}]
"""
_TIMEOUT_S = 5.0


class ModelControl:
    """The control of the servers that one command starts one after another.

    Args:
        folder: an empty folder for the model that cannot be loaded.
        listen: the addresses at which the servers listen.
    """

    def __init__(self, folder: Path, listen: Listen) -> None:
        self._folder = folder
        self._listen = listen
        self._secret = secrets.token_hex(16)
        self._models: Sequence[str] = ()
        version = folder / layout.DRAINING / "1"
        version.mkdir(parents=True)
        (version.parent / layout.CONFIG_FILE).write_text(_CONFIG, encoding="utf-8")

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that open the API to a request."""
        return {_HEADER: self._secret}

    def options(self, models: Sequence[str]) -> list[str]:
        """Return the options of tritonserver for a server of these models."""
        self._models = models
        restriction = f"model-repository:{_HEADER}={self._secret}"
        return [
            f"--model-repository={self._folder}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            f"--http-restricted-api={restriction}",
            f"--grpc-restricted-protocol={restriction}",
        ]

    def withdraw_readiness(self) -> None:
        """Make the server call itself not ready from now on.

        Raises:
            OSError: the server has not answered both calls; what they ask for may come about later.
        """
        try:
            self._ask("POST", f"/v2/repository/models/{layout.DRAINING}/unload")  # the one that gave readiness back
        finally:
            self._ask("POST", f"/v2/repository/models/{layout.DRAINING}/load")  # says that it cannot be loaded

    def give_readiness_back(self) -> None:
        """Undo `withdraw_readiness`, so that the server is ready again if all its models are.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        override = {"parameters": {"config": json.dumps(self._other_name())}}
        status, answer = self._ask("POST", f"/v2/repository/models/{layout.DRAINING}/load", json.dumps(override))
        if status != http.client.OK:
            raise OSError(f"the server cannot be made ready again: {answer[:500]}")

    def _other_name(self) -> dict[str, Any]:
        """Return the configuration of an ensemble that is nothing but a model of the server, by another name.

        The model is one that is never loaded again: calls about the ensemble would wait for that.
        """
        for model in self._models:
            if not model.endswith(layout.PREPROCESSING):
                continue
            status, answer = self._ask("GET", f"/v2/models/{model}/config")
            config = json.loads(answer) if status == http.client.OK else {}
            if not config or "ensemble_scheduling" in config:
                continue
            tensors = {
                kind: [{name: tensor[name] for name in ("name", "data_type", "dims")} for tensor in config[kind]]
                for kind in ("input", "output")
            }
            maps = {f"{kind}_map": {tensor["name"]: tensor["name"] for tensor in tensors[kind]} for kind in tensors}
            step = {"model_name": model, "model_version": -1, **maps}
            return {
                "name": layout.DRAINING,
                "platform": "ensemble",
                "max_batch_size": config.get("max_batch_size", 0),
                **tensors,
                "ensemble_scheduling": {"step": [step]},
            }
        raise OSError("the server has no model that could be named once more")

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(
            local_address(self._listen.host), self._listen.http_port, timeout=_TIMEOUT_S
        )
        try:
            connection.request(method, path, body, dict(self.headers))
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"the server does not answer: {error}") from error
        finally:
            connection.close()
