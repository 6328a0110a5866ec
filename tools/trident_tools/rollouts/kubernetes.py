"""The API server of a Kubernetes cluster, as far as a rollout needs it.

Owns how it is reached: from a pod by its service account, or at a URL such as that of `kubectl proxy`. It reads and
patches single objects. Never knows what is in them.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError, ServerError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 10.0
_MAX_BYTES = 4 << 20
_MERGE_PATCH = "application/merge-patch+json"


class ConflictError(ServerError):
    """An object has changed since it was read."""


@dataclass(frozen=True)
class KubeAddress:
    """The address of an API server, and how this process shows who it is.

    Args:
        url: without a path.
        account: folder of the service account's token and certificate; None to show nothing.
    """

    url: str
    account: Path | None = None


def kube_address(url: str | None) -> KubeAddress:
    """Return the API server at a URL, or the one of the cluster that this process runs in.

    Raises:
        ConfigError: there is none.
    """
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.rstrip("/"):
            raise ConfigError(f"--kube-api {url}: must be http://HOST:PORT, as `kubectl proxy` prints it")
        return KubeAddress(url.rstrip("/"))
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host is None or not (_ACCOUNT / "token").exists():
        raise ConfigError(
            "--httproute: this is no pod with a service account; run `kubectl proxy` and give --kube-api "
            "http://127.0.0.1:8001"
        )
    return KubeAddress(f"https://{f'[{host}]' if ':' in host else host}:{port}", _ACCOUNT)


class KubeApi:
    """Reads and patches objects.

    Args:
        address: of the API server.
    """

    def __init__(self, address: KubeAddress) -> None:
        self._address = address

    def get(self, path: str) -> dict[str, Any]:
        """Return an object.

        Raises:
            ServerError: it cannot be had.
        """
        return self._ask("GET", path, None)

    def patch(self, path: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Merge a change into an object, and return what has come of it.

        Raises:
            ConflictError: the change names a `metadata.resourceVersion` that is not the object's any more.
            ServerError: it cannot be changed.
        """
        return self._ask("PATCH", path, change)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        parts = urlsplit(self._address.url)
        headers = {"Accept": "application/json"}
        account = self._address.account
        connection: http.client.HTTPConnection
        try:
            if account is not None:
                # Both are replaced while a pod runs.
                headers["Authorization"] = f"Bearer {(account / 'token').read_text(encoding='ascii').strip()}"
                context = ssl.create_default_context(cafile=str(account / "ca.crt"))
                connection = http.client.HTTPSConnection(
                    str(parts.hostname), parts.port, timeout=_TIMEOUT_S, context=context
                )
            else:
                connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_TIMEOUT_S)
            try:
                if body is not None:
                    headers["Content-Type"] = _MERGE_PATCH
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                reply = connection.getresponse()
                status, content = reply.status, reply.read(_MAX_BYTES)
            finally:
                connection.close()
            answer = json.loads(content) if content else {}
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"the Kubernetes API at {self._address.url} does not answer: {error}") from None
        if not isinstance(answer, dict):
            answer = {}
        if status == http.client.CONFLICT:
            raise ConflictError(f"{path}: has changed meanwhile")
        if status != http.client.OK:
            raise ServerError(f"the Kubernetes API refuses {method} {path}: {status} {answer.get('message', '')}")
        return answer
