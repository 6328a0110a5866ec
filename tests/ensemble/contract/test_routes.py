"""The routes file: what is rendered is read again, and what is no routes file is refused by key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.routes import Routes, RouteServer, Side, parse_routes, render_routes

HOSTS = st.sampled_from(["a", "b.example", "10.0.0.7", "[fd00::7]"])
PORTS = st.integers(1, 65535)
URLS = st.builds("http://{}:{}".format, HOSTS, PORTS)
SERVERS = st.lists(st.builds(RouteServer, URLS, URLS), unique_by=lambda server: server.url, min_size=2, max_size=6)
WEIGHTS = st.floats(0, 100) | st.integers(0, 100).map(float)
A = {"url": "http://a:8000", "metrics_url": "http://a:8002"}
B = {"url": "http://b:8000", "metrics_url": "http://b:8002"}


@given(SERVERS, st.data())
def test_routes_are_read_as_they_were_rendered(servers: list[RouteServer], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(servers)))
    stable = Side(tuple(servers[:cut])) if cut or data.draw(st.booleans()) else None
    canary = Side(tuple(servers[cut:])) if cut < len(servers) else None
    weight = 0.0 if canary is None else 100.0 if stable == Side(()) else data.draw(WEIGHTS)
    routes = Routes(stable, canary, weight)
    assert parse_routes(render_routes(routes)) == routes


def test_routes_have_the_format_that_both_sides_agreed_on() -> None:
    text = json.dumps({"format": 1, "stable": {"servers": [A]}, "canary": {"servers": [B], "weight": 12.5}})
    a = RouteServer("http://a:8000", "http://a:8002")
    b = RouteServer("http://b:8000", "http://b:8002")
    routes = parse_routes(text)
    assert routes == Routes(Side((a,)), Side((b,)), 12.5)
    assert json.loads(render_routes(routes)) == json.loads(text)
    assert parse_routes('{"format": 1}') == Routes()
    assert '"weight": 10\n' in render_routes(Routes(None, Side((b,)), 10.0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "must be an object"),
        ({}, "format: missing"),
        ({"format": 2}, "format: 2"),
        ({"format": True}, "format: True"),
        ({"format": 1, "canry": {}}, "^canry: unknown key"),
        ({"format": 1, "stable": []}, "stable: must be an object"),
        ({"format": 1, "stable": {"servers": [A], "weight": 90}}, r"stable\.weight: unknown key"),
        ({"format": 1, "stable": {}}, r"stable\.servers: missing"),
        ({"format": 1, "stable": {"servers": A}}, r"stable\.servers: must be a list"),
        ({"format": 1, "stable": {"servers": []}}, r"stable\.servers: there is none"),
        ({"format": 1, "stable": {"servers": [A, A]}}, r"stable\.servers: names http://a:8000 once more"),
        ({"format": 1, "stable": {"servers": ["http://a:8000"]}}, r"stable\.servers\[0\]: must be an object"),
        ({"format": 1, "stable": {"servers": [{"url": A["url"]}]}}, r"stable\.servers\[0\]\.metrics_url: missing"),
        ({"format": 1, "stable": {"servers": [{**A, "name": "a"}]}}, r"stable\.servers\[0\]\.name: unknown key"),
        ({"format": 1, "stable": {"servers": [{**A, "url": "https://a:8000"}]}}, r"\[0\]\.url: 'https://a:8000'"),
        ({"format": 1, "stable": {"servers": [{**A, "url": "http://a"}]}}, r"\[0\]\.url: 'http://a'"),
        ({"format": 1, "stable": {"servers": [{**A, "url": "http://a:99999"}]}}, r"\[0\]\.url"),
        ({"format": 1, "stable": {"servers": [{**A, "url": "http://[a:8000"}]}}, r"\[0\]\.url"),
        ({"format": 1, "stable": {"servers": [{**A, "url": "http://u:p@a:8000"}]}}, r"\[0\]\.url"),
        ({"format": 1, "stable": {"servers": [{**A, "metrics_url": 8002}]}}, r"\[0\]\.metrics_url: 8002"),
        ({"format": 1, "canary": {"servers": [B]}}, r"canary\.weight: missing"),
        ({"format": 1, "canary": {"servers": [], "weight": 0}}, r"canary\.servers: there is none"),
        ({"format": 1, "canary": {"servers": [B], "weight": "10"}}, r"canary\.weight: must be a number"),
        ({"format": 1, "canary": {"servers": [B], "weight": True}}, r"canary\.weight: must be a number"),
        ({"format": 1, "canary": {"servers": [B], "weight": -0.1}}, r"canary\.weight: -0\.1"),
        ({"format": 1, "canary": {"servers": [B], "weight": -(10**400)}}, r"canary\.weight: -10"),
        ({"format": 1, "canary": {"servers": [B], "weight": float("nan")}}, r"canary\.weight: nan"),
        ({"format": 1, "stable": {"servers": []}, "canary": {"servers": [B], "weight": 99}}, r"weight 100"),
        ({"format": 1, "stable": {"servers": [A]}, "canary": {"servers": [A], "weight": 1}}, r"canary\.servers: names"),
    ],
)
def test_routes_what_is_none_is_refused_by_key(content: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_routes(json.dumps(content))


def test_routes_what_is_no_json_is_refused() -> None:
    for text in ("", "{", "[" * 100_000):
        with pytest.raises(ConfigError, match="is not JSON"):
            parse_routes(text)
