"""The table of paths.

Owns which endpoint a method and a path belong to, and what is answered where there is none. Never looks at anything
else of a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.convertors import Convertor
from starlette.routing import compile_path

from trident_gateway.api.interface import Endpoint
from trident_gateway.errors import MethodNotAllowedError, NotFoundError

Match = tuple[Endpoint, Mapping[str, str]]

_NO_PARAMS: Mapping[str, str] = {}


class Routes:
    """Endpoints by method and path.

    Args:
        endpoints: no two for the same method of one path.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._fixed: dict[str, dict[str, Endpoint]] = {}
        self._patterns: list[tuple[re.Pattern[str], Mapping[str, Convertor[Any]], dict[str, Endpoint]]] = []
        by_path: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        for path, methods in by_path.items():
            pattern, _, convertors = compile_path(path)
            if convertors:
                self._patterns.append((pattern, convertors, methods))
            else:
                self._fixed[path] = methods

    def find(self, method: str, path: str) -> Match:
        """Return the endpoint of a request and the variable parts of its path.

        Raises:
            NotFoundError: there is nothing at this path.
            MethodNotAllowedError: there is something, but not for this method.
        """
        methods = self._fixed.get(path)
        params = _NO_PARAMS
        if methods is None:
            methods, params = self._matching(path)
        # A client that asks for the head alone asks for what it would get; the body stays behind in the connection.
        endpoint = methods.get("GET" if method == "HEAD" else method)
        if endpoint is None:
            raise MethodNotAllowedError(tuple(sorted(methods)))
        return endpoint, params

    def _matching(self, path: str) -> tuple[dict[str, Endpoint], Mapping[str, str]]:
        for pattern, convertors, methods in self._patterns:
            found = pattern.match(path)
            if found:
                return methods, {
                    name: str(convertors[name].convert(value)) for name, value in found.groupdict().items()
                }
        raise NotFoundError
