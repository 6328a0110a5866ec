"""An API server of Kubernetes as Helm and kubectl see it: its kinds, and objects that are made, applied and deleted.

Owns the objects. Never defaults, admission, or lists that are merged by their keys: what changes a list replaces it.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

Object = dict[str, Any]

#: Kinds of the API: group and version, kind, and the name in addresses.
KINDS = (
    ("v1", "Namespace", "namespaces"),
    ("v1", "Service", "services"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ("rbac.authorization.k8s.io/v1", "Role", "roles"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"),
    ("inference.networking.k8s.io/v1", "InferencePool", "inferencepools"),
    ("keda.sh/v1alpha1", "ScaledObject", "scaledobjects"),
    ("monitoring.coreos.com/v1", "PodMonitor", "podmonitors"),
    ("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
    ("cert-manager.io/v1", "Certificate", "certificates"),
)


def immutable(one: Object) -> Any:
    """Return the part of an object that an API server refuses to change once the object is there."""
    spec = one.get("spec", {})
    if one["kind"] == "Deployment":
        return spec["selector"]
    if one["kind"] == "StatefulSet":
        return [spec[name] for name in ("selector", "serviceName", "volumeClaimTemplates")]
    if one["kind"] == "Service":
        return spec.get("clusterIP")
    return one.get("roleRef") if one["kind"] == "RoleBinding" else None


def changed(one: Any, patch: Any) -> Any:
    """Return what a merge patch makes of a value: null takes a field away."""
    if not isinstance(patch, dict):
        return patch
    found = dict(one) if isinstance(one, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        elif not key.startswith("$"):  # directives are about lists
            found[key] = changed(found.get(key), value)
    return found


class ClusterApi:
    """The objects of a cluster, by the last part of their address.

    Attributes:
        url: where it listens.
        objects: those that are there, by kind's name in addresses and name; a test may change them.
        refused: what was answered with 422, because it would have changed what cannot change.
        unknown: what was asked for in vain, beside objects.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects: dict[tuple[str, str], Object] = {}
        self.refused: list[tuple[str, str]] = []
        self.unknown: list[str] = []

    def answer(self, method: str, path: str, body: Object, *, is_change: bool = False) -> tuple[int, Object]:
        """Return the status and the body of an answer; a PATCH is either the whole object or a change of it."""
        parts = [part for part in path.split("?", maxsplit=1)[0].split("/") if part]
        if (found := self._discovery(parts)) is not None:
            return 200, found
        if "namespaces" not in parts:
            self.unknown.append(f"{method} {path}")
            return 404, _status(404)
        kind, *name = parts[parts.index("namespaces") + 2 :]
        key = (kind, name[0] if name else body["metadata"]["name"])
        if method == "GET":
            return (200, self.objects[key]) if key in self.objects else (404, _status(404))
        if method == "DELETE":
            self.objects.pop(key, None)
            return 200, {**_status(200), "status": "Success"}
        before = self.objects.get(key)
        if is_change:
            body = changed(before, body)
        if before is not None and immutable(body) != immutable(before):
            self.refused.append(key)
            return 422, _status(422)
        self.objects[key] = copy.deepcopy(body)
        return (201 if before is None else 200), body

    def _discovery(self, parts: list[str]) -> Object | None:
        groups = sorted({version for version, _, _ in KINDS if "/" in version})
        if parts[:2] == ["openapi", "v3"]:
            return self._openapi("/".join(parts[2:]))
        if parts[:-1] == ["api", "v1", "namespaces"]:  # every namespace is there
            return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": parts[-1]}}
        pages: dict[str, Object] = {
            "version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
            "api": {"kind": "APIVersions", "versions": ["v1"]},
        }
        if (page := pages.get("/".join(parts))) is not None:
            return page
        if parts == ["apis"]:
            named = [(one.partition("/")[0], {"groupVersion": one, "version": one.partition("/")[2]}) for one in groups]
            listed = [{"name": name, "versions": [one], "preferredVersion": one} for name, one in named]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        version = "/".join(parts[1:])
        resources = [
            {"name": name, "kind": kind, "namespaced": True, "singularName": kind.lower(), "verbs": ["get", "patch"]}
            for one, kind, name in KINDS
            if one == version
        ]
        if not resources:
            return None
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}

    def _openapi(self, path: str) -> Object | None:
        """Say that a PATCH may ask for validation by the server: so a client does not do it itself."""
        if not path:
            versions = {f"{'apis' if '/' in one else 'api'}/{one}" for one, _, _ in KINDS}
            return {"paths": {one: {"serverRelativeURL": f"/openapi/v3/{one}"} for one in versions}}
        paths = {}
        for version, kind, name in KINDS:
            group, _, short = version.rpartition("/")
            if path.partition("/")[2] == version:
                what = {"group": group, "version": short, "kind": kind}
                patch = {
                    "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                    "responses": {},
                    "x-kubernetes-group-version-kind": what,
                }
                paths[f"/{path}/namespaces/{{namespace}}/{name}/{{name}}"] = {"patch": patch}
        return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.30.0"}, "paths": paths}


def _status(code: int) -> Object:
    reason = {404: "NotFound", 422: "Invalid"}.get(code, "")
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason}
    return {**status, "message": "spec: Invalid value: field is immutable"} if code == 422 else status


@contextmanager
def running_cluster() -> Iterator[ClusterApi]:
    """Give a cluster's API on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer leaves as a whole, or its second half waits for the first one's acknowledgement

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PATCH(self) -> None:
            self._answer()

        def do_DELETE(self) -> None:
            self._answer()

        def _answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = yaml.load(self.rfile.read(length), Loader=yaml.CSafeLoader) if length else {}
            is_change = "merge-patch" in self.headers.get("content-type", "")
            status, answer = cluster.answer(self.command, self.path, body, is_change=is_change)
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster = ClusterApi(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=60)
