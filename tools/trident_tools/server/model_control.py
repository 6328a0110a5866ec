"""Triton's control of models, reserved for this command and used to withdraw a server's readiness.

Triton calls a server ready while every model that was to be loaded is loaded. So a server that drains is asked to load
a model that cannot be loaded: it goes on answering its requests, and /v2/health/ready says no. That takes the model
control API, with which any client could unload models, so a secret that only this command knows guards it.

Owns that model and the secret. Never decides when a server drains.
"""

from __future__ import annotations

import http.client
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

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
        version = folder / layout.DRAINING / "1"
        version.mkdir(parents=True)
        (version.parent / layout.CONFIG_FILE).write_text(_CONFIG, encoding="utf-8")

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that open the API to a request."""
        return {_HEADER: self._secret}

    def options(self, models: Sequence[str]) -> list[str]:
        """Return the options of tritonserver for a server of these models."""
        restriction = f"model-repository:{_HEADER}={self._secret}"
        return [
            f"--model-repository={self._folder}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            f"--http-restricted-api={restriction}",
            f"--grpc-restricted-protocol={restriction}",
        ]

    def withdraw_readiness(self) -> None:
        """Make the server call itself not ready from now on, for as long as it lives.

        Raises:
            OSError: the server does not answer.
        """
        connection = http.client.HTTPConnection(
            local_address(self._listen.host), self._listen.http_port, timeout=_TIMEOUT_S
        )
        try:
            connection.request("POST", f"/v2/repository/models/{layout.DRAINING}/load", headers=dict(self.headers))
            connection.getresponse().read()  # says that the model cannot be loaded
        except http.client.HTTPException as error:
            raise OSError(f"the server does not answer: {error}") from error
        finally:
            connection.close()
