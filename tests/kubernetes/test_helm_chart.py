"""The chart renders what the overlays are, refuses what cannot be meant, and stays installable as values change."""

from __future__ import annotations

import copy
import re
from pathlib import Path as File
from typing import Any

import helm_python
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.kubernetes.charts import (
    CHART,
    HELM_LABELS,
    LOADED,
    Path,
    Values,
    at,
    check,
    defaults,
    groups,
    leaves,
    merged,
    nested,
    notes,
    overlay_values,
    schema,
    template,
)
from tests.kubernetes.cluster_api import immutable
from tests.kubernetes.helm_values_table import table_of_page, values_table
from tests.kubernetes.network_policies import matches
from tests.kubernetes.rendering import (
    KUBERNETES,
    MINIMUM_VERSIONS,
    NEWEST_VERSION,
    OLDEST_VERSION,
    OVERLAYS,
    Object,
    containers,
    option,
    pod,
    pod_labels,
    render,
)
from tests.programs import needs

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
needs_kubectl = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")


def keyed(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """Objects by their kind and name, of which there is one each."""
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found


def normalised(one: Object) -> Object:
    """An object as an overlay has it: without what only releases need, and with its volumes in the order of names.

    Releases have labels of Helm's own, and a PodMonitor by instances, as two of them may share a namespace.
    """
    one = copy.deepcopy(one)
    for label in HELM_LABELS:
        one["metadata"]["labels"].pop(label, None)
    if one["kind"] == "PodMonitor":
        one["spec"]["selector"].pop("matchExpressions", None)
    if "template" in one.get("spec", {}):
        pod(one)["volumes"].sort(key=lambda volume: str(volume["name"]))
    return one


def test_chart_has_values_for_every_overlay() -> None:
    assert sorted(file.stem for file in (CHART / "ci").glob("*.yaml")) == OVERLAYS


@needs_kubectl
@each_overlay
def test_chart_renders_the_objects_of_the_overlay(overlay: str) -> None:
    expected = keyed([normalised(one) for one in render(overlay)])
    # Helm keeps its own record in the namespace, which must be there before: no chart can bring it.
    del expected["Namespace", "trident"]
    found = keyed(template(overlay_values(overlay)))
    assert found.keys() == expected.keys()
    for key, one in found.items():
        assert one["metadata"]["labels"].keys() >= HELM_LABELS
        assert normalised(one) == expected[key], key


@each_overlay
def test_chart_passes_helms_lint(overlay: str) -> None:
    report = helm_python.lint(CHART, overlay_values(overlay), strict=True, namespace="trident")
    assert report["errors"] == []
    assert [one["error"] for one in report["messages"]] == ["icon is recommended"]


@each_overlay
def test_chart_satisfies_the_strict_schemas_of_the_oldest_and_newest_version(overlay: str) -> None:
    for version in (MINIMUM_VERSIONS.get(overlay, OLDEST_VERSION), NEWEST_VERSION):
        check(template(overlay_values(overlay)), version)


def test_chart_is_of_the_version_in_pyproject_and_for_clusters_that_have_sidecars() -> None:
    text = (KUBERNETES.parents[1] / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert version is not None
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == version[1]
    assert about["kubeVersion"] == f">={OLDEST_VERSION}.0-0"


# Values.


def test_values_are_all_described_and_nothing_else_is_taken() -> None:
    described = {path for path, _ in leaves()} - {("global",)}
    missing = [path for path in described if not at_or_none(defaults(), path)]
    assert missing == []
    for path, said in leaves():
        assert said["description"].endswith("."), path
    for group in groups():
        node = schema()
        for key in group:
            node = node["properties"][key]
        assert node["additionalProperties"] is False, group


def at_or_none(values: Values, path: Path) -> bool:
    """Whether there is a value at a path."""
    try:
        at(values, path)
    except KeyError:
        return False
    return True


edits = st.sampled_from(["append", "drop", "double", "swap", "upper", "snake"])


def misspelt(word: str, edit: str, place: int) -> str:
    """A word with one fault that hands make."""
    place %= len(word)
    if edit == "append":
        return f"{word}s"
    if edit == "drop":
        return word[:place] + word[place + 1 :]
    if edit == "double":
        return word[:place] + word[place] + word[place:]
    if edit == "swap":
        return word[:place] + word[place : place + 2][::-1] + word[place + 2 :]
    if edit == "upper":
        return word[:place] + word[place].upper() + word[place + 1 :]
    return re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", word)


ALL_PATHS = [path for path, _ in leaves()] + [path for path in groups() if path]


@pytest.mark.parametrize("path", ALL_PATHS, ids=".".join)
def test_values_with_a_misspelt_name_are_refused(path: Path) -> None:
    value = at(defaults(), path) if path != ("global",) else {}
    with pytest.raises(helm_python.HelmValuesError, match=f"'{path[-1]}x' not allowed"):
        template(nested((*path[:-1], f"{path[-1]}x"), value))


@given(path=st.sampled_from(ALL_PATHS), depth=st.integers(0, 3), edit=edits, place=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_values_with_any_fault_in_a_name_are_refused(path: Path, depth: int, edit: str, place: int) -> None:
    depth = min(depth, len(path) - 1)
    wrong = misspelt(path[depth], edit, place)
    siblings = {one[depth] for one in ALL_PATHS if one[:depth] == path[:depth] and len(one) > depth}
    assume(wrong and wrong not in siblings)
    value = at(defaults(), path) if path != ("global",) else {}
    with pytest.raises(helm_python.HelmValuesError, match="not allowed"):
        template(nested((*path[:depth], wrong, *path[depth + 1 :]), value))


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids=".".join)
def test_values_of_another_type_are_refused(path: Path) -> None:
    wrong: dict[str, object] = {"string": 7, "integer": "7", "boolean": "true", "array": {"a": 1}, "object": ["a"]}
    kinds = dict(leaves())[path]["type"]
    with pytest.raises(helm_python.HelmValuesError, match=r"got \w+, want"):
        template(nested(path, wrong[kinds[0] if isinstance(kinds, list) else kinds]))


#: A value that differs from the default, and others without which it means nothing.
OTHERS: dict[str, tuple[object, Values]] = {
    "replicas": (3, {}),
    "priorityClassName": ("urgent", {}),
    "image.registry": ("registry.example.com/llm/", {}),
    "image.pullPolicy": ("Always", {}),
    "image.pullSecrets": (["registry"], {}),
    "image.serve.repository": ("serve", {}),
    "image.serve.tag": ("1.2.3", {}),
    "image.serve.digest": (f"sha256:{'1' * 64}", {}),
    "image.gateway.repository": ("gateway", {}),
    "image.gateway.tag": ("1.2.3", {}),
    "image.gateway.digest": (f"sha256:{'1' * 64}", {}),
    "hardware.accelerator": ("gpu", {}),
    "hardware.cpu": ("8", {}),
    "hardware.memory": ("32Gi", {}),
    "hardware.gpus": (2, {"hardware": {"accelerator": "gpu"}}),
    "hardware.migProfile": ("mig-1g.10gb", {"hardware": {"accelerator": "mig"}}),
    "hardware.spread": ("required", {}),
    "hardware.spareServer": (False, {}),
    "hardware.nodeSelector": ({"disk": "fast"}, {}),
    "hardware.tolerations": ([{"key": "llm", "operator": "Exists"}], {}),
    "triton.options": (["--token-budget=4096"], {}),
    "triton.shm": ("2Gi", {}),
    "gateway.mode": ("deployment", {}),
    "gateway.replicas": (3, {"gateway": {"mode": "deployment"}}),
    "gateway.cpu": ("2", {}),
    "gateway.memory": ("1Gi", {}),
    "gateway.keysSecret": ("keys", {}),
    "gateway.options": (["--max-n=8"], {}),
    "drain.delay": (30, {}),
    "drain.timeout": (600, {}),
    "drain.terminationGracePeriodSeconds": (200, {}),
    "models.source": ("build", {}),
    "models.claim": ("models", {}),
    "models.image": (f"models@sha256:{'1' * 64}", {"models": {"source": "image", "image": f"m@sha256:{'0' * 64}"}}),
    "models.checkpoint": ("checkpoint", {"models": {"source": "build"}}),
    "models.buildSize": ("80Gi", {"models": {"source": "build"}}),
    "models.digests": ("digests", {}),
    "models.others": ([{"name": "second", "claim": "models-second"}], {"gateway": {"mode": "deployment"}}),
    "autoscaling.kind": ("hpa", {}),
    "autoscaling.minReplicas": (3, {"autoscaling": {"kind": "keda"}}),
    "autoscaling.maxReplicas": (20, {"autoscaling": {"kind": "hpa"}}),
    "autoscaling.prometheus": ("http://prometheus:9090", {"autoscaling": {"kind": "keda"}}),
    "canary.enabled": (True, {}),
    "canary.replicas": (1, {"canary": {"enabled": True}}),
    "canary.claim": ("models-canary", {"canary": {"enabled": True}}),
    "canary.tag": ("1.2.3", {"canary": {"enabled": True}}),
    "canary.digest": (f"sha256:{'1' * 64}", {"canary": {"enabled": True}}),
    "gie.enabled": (True, {}),
    "gie.picker": ("picker", {"gie": {"enabled": True}}),
    "route.gateway": ("inner", {"canary": {"enabled": True}}),
    "route.namespace": ("gateways", {"gie": {"enabled": True}}),
    "tls.enabled": (True, {}),
    "tls.secret": ("certificate", {"tls": {"enabled": True}}),
    "tls.certificate": (False, {"tls": {"enabled": True}}),
    "tls.issuerKind": ("Issuer", {"tls": {"enabled": True}}),
    "tls.issuerName": ("letsencrypt", {"tls": {"enabled": True}}),
    "tls.dnsNames": (["llm.example.com"], {"tls": {"enabled": True}}),
    "redis.enabled": (True, {}),
    "redis.repository": ("valkey", {"redis": {"enabled": True}}),
    "redis.tag": ("8.1.2", {"redis": {"enabled": True}}),
    "redis.digest": (f"sha256:{'1' * 64}", {"redis": {"enabled": True}}),
    "redis.secret": ("redis", {"redis": {"enabled": True}}),
    "networkPolicy.enabled": (False, {}),
    "networkPolicy.ingressNamespaces": ({"may": "enter"}, {}),
    "networkPolicy.monitoringNamespaces": ({"may": "watch"}, {}),
    "networkPolicy.nodeLocalDns": ("", {}),
    "monitoring.enabled": (True, {}),
    "monitoring.labels": ({"release": "prometheus"}, {"monitoring": {"enabled": True}}),
    "monitoring.traces": ("http://collector.traces:4318", {}),
}


def test_values_that_differ_are_tried_for_every_value() -> None:
    assert set(OTHERS) == {".".join(path) for path, _ in leaves()} - {"global"}


@pytest.mark.parametrize("dotted", OTHERS)
def test_values_each_change_what_is_rendered_and_stay_valid(dotted: str) -> None:
    value, context = OTHERS[dotted]
    changed = template(merged(context, nested(tuple(dotted.split(".")), value)))
    assert changed != template(context)
    version = "1.33" if "models.image" in dotted else OLDEST_VERSION
    check(changed, version)


@pytest.mark.parametrize(
    "values",
    [
        {"gateway": {"options": ["--drain-timeout=900"]}},
        {"gateway": {"options": ["--port=80"]}},
        {"gateway": {"options": ["max-n"]}},
        {"triton": {"options": ["--drain-delay=1"]}},
        {"triton": {"options": ["--host=127.0.0.1"]}},
    ],
)
def test_options_that_the_chart_sets_are_refused(values: Values) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        template(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gie": {"enabled": True}, "gateway": {"mode": "deployment"}}, "gie.enabled needs gateway.mode sidecar"),
        ({"canary": {"enabled": True}, "gateway": {"mode": "deployment"}}, "canary.enabled needs gateway.mode sidecar"),
        ({"canary": {"enabled": True}, "gie": {"enabled": True}}, "both own the route"),
        ({"tls": {"enabled": True}, "gie": {"enabled": True}}, "tls.enabled and gie.enabled do not go together"),
        ({"tls": {"enabled": True}, "canary": {"enabled": True}}, "tls.enabled and canary.enabled do not go together"),
        ({"models": {"others": [{"name": "b", "claim": "b"}]}}, "models.others needs gateway.mode deployment"),
        ({"models": {"source": "image"}}, "models.image is empty"),
        ({"models": {"source": "build", "digests": "sums"}}, "models.digests is about files"),
        ({"autoscaling": {"minReplicas": 5, "maxReplicas": 4}}, "autoscaling.maxReplicas is 4"),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_name(values: Values, message: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=message):
        template(values)


# The end of a pod.


@given(delay=st.integers(0, 600), timeout=st.integers(1, 3600), mode=st.sampled_from(["sidecar", "deployment"]))
@settings(max_examples=12, deadline=None)
def test_grace_is_the_drain_and_15_seconds(delay: int, timeout: int, mode: str) -> None:
    values = {"drain": {"delay": delay, "timeout": timeout}, "gateway": {"mode": mode}}
    for workload in template(values):
        if workload["kind"] == "Deployment":
            assert pod(workload)["terminationGracePeriodSeconds"] == delay + timeout + 15
            last = containers(workload)[-1]
            assert (option(last, "--drain-delay"), option(last, "--drain-timeout")) == (str(delay), str(timeout))


@given(delay=st.integers(0, 600), timeout=st.integers(1, 3600), short=st.integers(1, 5000), more=st.integers(0, 5000))
@settings(max_examples=12, deadline=None)
def test_grace_that_would_cut_streams_is_refused(delay: int, timeout: int, short: int, more: int) -> None:
    least = delay + timeout + 15
    drain = {"delay": delay, "timeout": timeout}
    if least - short >= 16:
        with pytest.raises(helm_python.HelmRenderError, match=f"drain.timeout \\+ 15 = {least};"):
            template({"drain": {**drain, "terminationGracePeriodSeconds": least - short}})
    for one in template({"drain": {**drain, "terminationGracePeriodSeconds": least + more}}):
        if one["kind"] == "Deployment":
            assert pod(one)["terminationGracePeriodSeconds"] == least + more


# Releases.


@pytest.mark.parametrize("path", ["image.serve.tag", "image.gateway.tag", "redis.tag", "canary.tag"])
def test_tag_latest_is_refused(path: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=path.replace(".", "/")):
        template(nested(tuple(path.split(".")), "latest"))


def test_namespace_default_is_refused() -> None:
    with pytest.raises(helm_python.HelmRenderError, match="give --namespace trident"):
        template(namespace="default")


def scalars(node: object) -> list[str]:
    """Every text in an object."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in scalars(value)]
    if isinstance(node, list):
        return [text for value in node for text in scalars(value)]
    return [node] if isinstance(node, str) else []


@each_overlay
def test_release_is_apart_from_one_of_another_name_and_namespace(overlay: str) -> None:
    values = overlay_values(overlay)
    first, second = template(values), template(values, name="other", namespace="elsewhere")
    assert len(first) == len(second)
    assert not keyed(first).keys() & keyed(second).keys()
    for one in second:
        assert one["metadata"]["namespace"] == "elsewhere"
        assert one["metadata"]["name"].startswith("other-trident")
        if one["kind"] != "PrometheusRule":  # its rules are about all namespaces
            texts = scalars(one.get("spec", one))
            assert not [text for text in texts if "trident.svc" in text and "elsewhere" not in text]
            assert not [text for text in texts if 'namespace="trident"' in text or 'pod=~"trident' in text]
    for workload in second:
        if workload["kind"] in ("Deployment", "StatefulSet"):
            labels = workload["spec"]["selector"]["matchLabels"]
            assert labels["app.kubernetes.io/instance"].startswith("other")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"canary": {"enabled": True}},
        {"gateway": {"mode": "deployment"}, "models": {"others": [{"name": "second", "claim": "second"}]}},
        {"gateway": {"mode": "deployment"}, "redis": {"enabled": True}},
    ],
)
def test_release_scrapes_all_of_its_pods_and_none_of_another_in_the_namespace(values: Values) -> None:
    first, second = (
        keyed(template(merged(values, {"monitoring": {"enabled": True}}), name=name)) for name in ("blue", "green")
    )
    selector = first["PodMonitor", "blue-trident"]["spec"]["selector"]
    scraped = {
        pod_name for (kind, pod_name), one in first.items() if kind == "Deployment" and is_scraped(selector, one)
    }
    assert scraped == {name for kind, name in first if kind == "Deployment"}
    assert not [one for (kind, _), one in second.items() if kind == "Deployment" and is_scraped(selector, one)]


def is_scraped(selector: Object, workload: Object) -> bool:
    """Whether a PodMonitor's selector is about a workload's pods."""
    return matches(selector, pod_labels(workload))


def test_release_of_the_longest_name_has_names_that_services_may_have() -> None:
    for overlay in OVERLAYS:
        for one in template(overlay_values(overlay), name="a" * 53, namespace="b" * 63):
            assert len(one["metadata"]["name"]) <= 63
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", one["metadata"]["name"])


def test_release_prints_what_it_still_needs() -> None:
    text = notes(overlay_values("redis"))
    for needed in ("trident-keys", "trident-models", "trident-redis", "trident-access=ingress"):
        assert needed in text
    assert "nothing is ever scaled" in notes({"autoscaling": {"kind": "keda"}})
    assert "nothing is ever scaled" not in notes(overlay_values("keda"))


def test_chart_can_be_another_charts_dependency(tmp_path: File) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts/trident").symlink_to(CHART)
    dependency = {"name": "trident", "version": "0.1.0"}
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(about))
    (parent / "values.yaml").write_text("global:\n  team: llm\ntrident:\n  replicas: 5\n")
    with helm_python.Chart.load(parent) as chart:
        files = chart.render({}, name="trident", namespace="trident")
        with pytest.raises(helm_python.HelmValuesError, match="not allowed"):
            chart.render({"trident": {"replica": 3}}, name="trident", namespace="trident")
    (text,) = [text for path, text in files.items() if path.endswith("templates/servers.yaml")]
    assert next(yaml.safe_load_all(text))["spec"]["replicas"] == 5


def test_chart_is_the_same_from_an_archive(tmp_path: File) -> None:
    values = overlay_values("monitoring")
    with helm_python.Chart.load(LOADED.save(tmp_path)) as packed:
        files = packed.render(values, name="trident", namespace="trident")
        assert not [file["name"] for file in packed.files if file["name"].startswith("ci/")]
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    rendered = [one for text in texts for one in yaml.safe_load_all(text) if one is not None]
    assert keyed(rendered) == keyed(template(values))


# Upgrades.


def unchangeable(objects: list[Object]) -> dict[tuple[str, str], Any]:
    """What the API server refuses to change in objects that are there."""
    return {(one["kind"], one["metadata"]["name"]): immutable(one) for one in objects}


some_values = st.lists(st.sampled_from(sorted(OTHERS)), unique=True, max_size=8).map(
    lambda chosen: [merged(OTHERS[path][1], nested(tuple(path.split(".")), OTHERS[path][0])) for path in chosen]
)


@given(changes=some_values)
@settings(max_examples=12, deadline=None)
def test_upgrades_never_change_what_cannot_change(changes: list[Values]) -> None:
    values: Values = {}
    before: dict[tuple[str, str], Any] = {}
    for change in changes:
        trial = merged(values, change)
        try:
            after = unchangeable(template(trial))
        except helm_python.HelmRenderError:
            continue  # refused as a whole: the release stays as it is
        values = trial
        for key in before.keys() & after.keys():
            assert after[key] == before[key], key
        before |= after


@given(changes=some_values)
@settings(max_examples=10, deadline=None)
def test_values_together_render_what_kubernetes_takes(changes: list[Values]) -> None:
    values: Values = {}
    for change in changes:
        values = merged(values, change)
    try:
        objects = template(values)
    except helm_python.HelmRenderError:
        return
    keyed(objects)
    version = "1.33" if at(merged(defaults(), values), ("models", "source")) == "image" else OLDEST_VERSION
    check(objects, version)
    for workload in objects:
        if workload["kind"] in ("Deployment", "StatefulSet"):
            claims = {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])}
            volumes = {one["name"] for one in pod(workload)["volumes"]} | claims
            everything = [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]
            assert {mount["name"] for one in everything for mount in one["volumeMounts"]} == volumes


def test_page_has_every_value_with_its_default_and_meaning() -> None:
    assert table_of_page() == values_table(), "python -m tests.kubernetes.helm_values_table writes it anew"


@needs_kubectl
def test_page_gives_the_namespace_the_profile_that_the_overlay_has_with_a_picker() -> None:
    (namespace,) = [one for one in render("gie") if one["kind"] == "Namespace"]
    text = (KUBERNETES.parents[1] / "docs/helm.md").read_text()
    (label,) = re.findall(r"^kubectl label namespace trident (\S+) --overwrite$", text, re.MULTILINE)
    name, _, profile = label.partition("=")
    assert namespace["metadata"]["labels"][name] == profile


def test_canary_has_images_of_its_own() -> None:
    def images(values: Values) -> list[str]:
        pinned = {"image": {"serve": {"digest": f"sha256:{'1' * 64}"}, "gateway": {"digest": f"sha256:{'2' * 64}"}}}
        (canary,) = [
            one
            for one in template(merged(pinned, {"canary": {"enabled": True, **values}}))
            if (one["kind"], one["metadata"]["name"]) == ("Deployment", "trident-canary")
        ]
        return [one["image"] for one in containers(canary)]

    serve, gateway = f"trident-serve@sha256:{'1' * 64}", f"trident-gateway@sha256:{'2' * 64}"
    assert images({}) == [serve, gateway]
    assert images({"tag": "1.2.3"}) == ["trident-serve:1.2.3", "trident-gateway:1.2.3"]
    assert images({"digest": f"sha256:{'3' * 64}"}) == [f"trident-serve@sha256:{'3' * 64}", gateway]
