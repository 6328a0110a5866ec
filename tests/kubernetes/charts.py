"""The Helm chart as Helm renders it.

Owns the one call of Helm's library, and the ways to walk through values and their schema. Never a cluster: Helm renders
without one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import helm_python
import kubernetes_validate
import yaml

from tests.kubernetes.rendering import KUBERNETES, Object, is_builtin

CHART = KUBERNETES / "helm/trident"
Values = dict[str, Any]
Path = tuple[str, ...]

#: Labels that Helm asks for, and kustomize does not: the only difference there may be between the two.
HELM_LABELS = {"app.kubernetes.io/managed-by", "helm.sh/chart"}

#: The chart as it was when the tests began.
LOADED = helm_python.Chart.load(CHART)


def template(
    values: Mapping[str, Any] | None = None, name: str = "trident", namespace: str = "trident"
) -> list[Object]:
    """Return the objects of a release.

    Raises:
        helm_python.HelmValuesError: the schema refuses the values.
        helm_python.HelmRenderError: the templates refuse them.
    """
    files = LOADED.render(dict(values or {}), name=name, namespace=namespace)
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return [one for text in texts for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one is not None]


def check(objects: Sequence[Object], version: str) -> None:
    """Refuse built-in kinds that a version of Kubernetes would not take as they are.

    Raises:
        kubernetes_validate.ValidationError: an object has a field that the strict schema does not have, or not so.
    """
    for one in objects:
        if is_builtin(one):
            _check(json.dumps(one, sort_keys=True), version)


@cache
def _check(text: str, version: str) -> None:
    """Check one object; most of a release are equal to another's, and a check takes as long as a rendering."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


def notes(values: Mapping[str, Any] | None = None) -> str:
    """Return what an installation prints."""
    return LOADED.render(dict(values or {}), name="trident", namespace="trident")["trident/templates/NOTES.txt"]


def overlay_values(overlay: str) -> Values:
    """Return the values that make a release equal to an overlay."""
    values: Values = yaml.safe_load((CHART / "ci" / f"{overlay}.yaml").read_text())
    return values


@lru_cache
def defaults() -> Values:
    """Return what values.yaml says; it is shared by all tests and must not be changed."""
    values: Values = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


@lru_cache
def schema() -> Values:
    """Return values.schema.json; it is shared by all tests and must not be changed."""
    document: Values = json.loads((CHART / "values.schema.json").read_text())
    return document


def is_group(node: Mapping[str, Any]) -> bool:
    """Return whether a part of the schema is a group of values, and not a value that is a map of a user's own."""
    return "properties" in node


def leaves(node: Mapping[str, Any] | None = None, path: Path = ()) -> Iterator[tuple[Path, Values]]:
    """Yield every value's path and what the schema says of it."""
    for key, below in (schema() if node is None else node)["properties"].items():
        if is_group(below):
            yield from leaves(below, (*path, key))
        else:
            yield (*path, key), below


def groups(node: Mapping[str, Any] | None = None, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every group of values; the first is all of them."""
    yield path
    for key, below in (schema() if node is None else node)["properties"].items():
        if is_group(below):
            yield from groups(below, (*path, key))


def nested(path: Path, value: object) -> Values:
    """Return values that hold one value at a path."""
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Values:
    """Return two trees of values as one; where both have a value, it is the second's."""
    both = copy.deepcopy(dict(first))
    for key, value in second.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def at(values: Mapping[str, Any], path: Path) -> Any:
    """Return the value at a path."""
    node: Any = values
    for key in path:
        node = node[key]
    return node


#: A release with objects and fields that no overlay has.
COMBINED: Values = {
    "canary": {"enabled": True},
    "redis": {"enabled": True},
    "models": {"source": "build"},
    "autoscaling": {"kind": "keda"},
    "monitoring": {"enabled": True, "traces": "http://collector.monitoring:4318"},
    "image": {"pullSecrets": ["registry"]},
}
