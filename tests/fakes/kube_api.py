"""The API server of Kubernetes, as far as one HTTPRoute goes.

It keeps one object with `resourceVersion` and `generation`, merges patches, answers 409 to a patch that names another
version, and says in the object's status when a gateway has taken the latest generation. It knows no schema, no
permission and no other object.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

PATH = "/apis/gateway.networking.k8s.io/v1/namespaces/trident/httproutes/trident"


class FakeKubeApi:
    """One server with one route, whose stable backend has everything."""

    def __init__(self) -> None:
        self.route: dict[str, Any] = {
            "metadata": {"name": "trident", "namespace": "trident", "resourceVersion": "7", "generation": 1},
            "spec": {
                "rules": [
                    {
                        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                        "backendRefs": [
                            {"name": "trident", "port": 8080, "weight": 100},
                            {"name": "trident-canary", "port": 8080, "weight": 0},
                        ],
                    }
                ]
            },
            "status": {"parents": []},
        }
        #: Called before each patch is looked at, as others who change the route at the same time.
        self.on_patch: Callable[[], None] = lambda: None
        #: Called with the canary's weight after each change.
        self.on_change: Callable[[int], None] = lambda _: None
        #: Whether a gateway takes what is there.
        self.takes = True
        #: An answer to everything; None for the right ones.
        self.refusal: int | None = None
        self.num_patches = 0
        self.authorizations: set[str | None] = set()
        self._lock = Lock()

    @property
    def weights(self) -> dict[str, int]:
        """The weights of the first rule, by backend."""
        return {one["name"]: one["weight"] for one in self.route["spec"]["rules"][0]["backendRefs"]}

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Change the route, as another client does."""
        with self._lock:
            edit(self.route)
            self._count_change()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and body of an answer."""
        if self.refusal is not None:
            return self.refusal, {"kind": "Status", "message": "it is forbidden"}
        if path != PATH:
            return 404, {"kind": "Status", "message": "not found"}
        if method == "PATCH":
            self.on_patch()
            with self._lock:
                self.num_patches += 1
                version = body.get("metadata", {}).get("resourceVersion")
                if version is not None and version != self.route["metadata"]["resourceVersion"]:
                    return 409, {"kind": "Status", "message": "the object has been modified"}
                self.route["spec"].update(body["spec"])
                self._count_change()
            self.on_change(self.weights["trident-canary"])
        return 200, deepcopy(self.route)

    def _count_change(self) -> None:
        metadata = self.route["metadata"]
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        metadata["generation"] += 1
        self.take()

    def take(self) -> None:
        """Say in the status that a gateway has the latest generation, if it takes any."""
        if self.takes:
            generation = self.route["metadata"]["generation"]
            accepted = {"type": "Accepted", "status": "True", "observedGeneration": generation}
            self.route["status"] = {"parents": [{"parentRef": {"name": "public"}, "conditions": [accepted]}]}

    @contextmanager
    def listening(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Answer on a thread; yield the URL."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.authorizations.add(self.headers.get("Authorization"))
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if self.command == "PATCH" and self.headers.get("Content-Type") != "application/merge-patch+json":
                    self.send_error(415)
                    return
                status, answer = fake.answer(self.command, self.path, json.loads(body) if body else {})
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_PATCH = do_GET  # noqa: N815 (the name that the base class looks for)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            if tls is not None:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            thread = Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join(60)
