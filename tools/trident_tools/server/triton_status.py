"""The state of a running tritonserver, asked over HTTP.

Owns the questions that supervision asks. Never changes anything, and never waits for a state to be reached.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping

from trident_tools.server.stillness import CoreFigures
from trident_tools.server.triton_server import Listen, local_address

_TIMEOUT_S = 2.0
#: Triton's words for the state of a version that is served, and of one that still has requests.
READY, UNLOADING = "READY", "UNLOADING"
_CORE_METRIC = re.compile(
    r"^(?:nv_trt_llm_(?:request|general)_metrics|nv_inference_pending_request_count)"
    r"\{(?P<labels>[^}]*)\} (?P<value>\S+)$",
    re.MULTILINE,
)
#: Triton's own count of requests that it has not handed over, whose line has no further label.
_PENDING = "pending"
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class TritonStatus:
    """Asks one server about its state.

    Args:
        listen: the addresses at which the server listens.
        headers: the headers that open the index of its repository.
    """

    def __init__(self, listen: Listen, headers: Mapping[str, str]) -> None:
        self._listen = listen
        self._headers = headers
        self._host = local_address(listen.host)

    def is_ready(self) -> bool:
        """Return whether the server answers and all its models are loaded."""
        try:
            status, _ = self._ask("GET", self._listen.http_port, "/v2/health/ready")
        except (OSError, http.client.HTTPException):
            return False
        return status == http.client.OK

    def model_states(self) -> dict[tuple[str, str], str]:
        """Return Triton's word for the state of each version of each model: READY, LOADING, UNLOADING or UNAVAILABLE.

        Raises:
            OSError: the server does not answer.
        """
        try:
            status, body = self._ask("POST", self._listen.http_port, "/v2/repository/index")
            if status != http.client.OK:
                raise OSError(f"the repository index answered {status}")
            entries = json.loads(body)
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"the repository index cannot be read: {error}") from error
        return {(entry["name"], entry.get("version", "")): entry.get("state", "") for entry in entries}

    def num_active_requests(self) -> int:
        """Return the number of requests in the cores by their metrics; 0 where no core publishes any.

        Raises:
            OSError: the server does not answer.
        """
        return sum(numbers.get("active", 0) for numbers in self._cores(READY, UNLOADING).values())

    def core_figures(self) -> dict[str, CoreFigures]:
        """Return what each core that is READY and publishes its steps says of itself, by its name and version.

        Raises:
            OSError: the server does not answer.
        """
        return {
            " ".join(name): CoreFigures(
                numbers["iteration_counter"],
                numbers.get("active", 0),
                sum(numbers.get(kind, 0) for kind in ("scheduled", "waiting", _PENDING)),
            )
            for name, numbers in self._cores(READY).items()
            if "iteration_counter" in numbers
        }

    def _cores(self, *states: str) -> dict[tuple[str, str], dict[str, int]]:
        """Return the numbers of the versions in these states by their kinds; what a version said outlives it."""
        cores: dict[tuple[str, str], dict[str, int]] = {}
        for metric in _CORE_METRIC.finditer(self._metrics()):
            labels = dict(_LABEL.findall(metric["labels"]))
            name = (labels.pop("model", ""), labels.pop("version", ""))
            for kind in labels.values() or [_PENDING]:  # such as `active`: there is one label more
                cores.setdefault(name, {})[kind] = int(float(metric["value"]))
        if not cores:
            return cores
        found = self.model_states()
        # A core that does not say its version is meant by any of the model's.
        wanted = {name for name, state in found.items() if state in states}
        wanted |= {(model, "") for model, _ in wanted}
        return {name: numbers for name, numbers in cores.items() if name in wanted}

    def _metrics(self) -> str:
        try:
            status, body = self._ask("GET", self._listen.metrics_port, "/metrics")
        except http.client.HTTPException as error:
            raise OSError(f"the metrics cannot be read: {error}") from error
        if status != http.client.OK:
            raise OSError(f"the metrics answered {status}")
        return body.decode("utf-8", "replace")

    def _ask(self, method: str, port: int, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, headers=dict(self._headers))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
