"""The options of `trident rollout`: what contradicts itself is refused by name, before anything is touched."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trident_tools.main import main

START = ("rollout", "start", "--routes", "{file}", "--to", "http://127.0.0.1:1", "--gateway", "http://127.0.0.1:2")
ROUTE = ("rollout", "start", "--httproute", "a/b", "--kube-api", "http://127.0.0.1:1", "--to", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (START[:-2], "--gateway: missing"),
        ((*START, "--canary-gateway", "http://127.0.0.1:3"), "--canary-gateway: is for --httproute"),
        ((*ROUTE, "--gateway", "http://127.0.0.1:2"), "--canary-gateway: missing"),
        ((*START, "--gateway", "http://127.0.0.1:2/metrics"), "--gateway http://127.0.0.1:2/metrics: must be"),
        ((*START, "--to", "http://127.0.0.1:1"), "names http://127.0.0.1:1 once more"),
        ((*START, "--to", "127.0.0.1:1"), "--to 127.0.0.1:1: must be a server's HTTP port"),
        ((*START, "--to-metrics-url", "http://a:1", "--to-metrics-url", "http://a:2"), "--to-metrics-url: 2 of them"),
        ((*START, "--stages", "50,10"), "--stages: each weight must be above"),
        ((*START, "--hold", "10m", "--max-hold", "1m"), "--max-hold 60 s: is below --hold 600 s"),
        ((*START, "--resume"), "--resume: there is no rollout that was broken off"),
        (START, "a gateway cannot be read: 127.0.0.1:2"),
        (("rollout", "finish", "--routes", "{file}"), "there is no rollout that has come to 100 %"),
        (("rollout", "status", "--routes", "{file}", "--kube-api", "x"), ""),
    ],
)
def test_rollout_refuses_what_contradicts_itself(
    words: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "routes.json"
    file.write_text('{"format": 1}\n', encoding="utf-8")
    status = main([word.format(file=file) for word in words])
    said = capsys.readouterr()
    assert (status, problem in said.err) == (1 if problem else 0, True), said
    assert file.read_text(encoding="utf-8") == '{"format": 1}\n'


@pytest.mark.parametrize("option", ["--hold=10", "--hold=0s", "--stages=a", "--min-requests=0", "--max-ttft-ratio=-1"])
def test_rollout_refuses_values_that_are_none(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as wrong:
        main([*START, option])
    assert wrong.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_rollout_refuses_a_metrics_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "routes.json"
    file.write_text('{"format": 1}\n', encoding="utf-8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main([*(word.format(file=file) for word in START), "--metrics-port", port]) == 1
    assert f"--metrics-port {port}" in capsys.readouterr().err
