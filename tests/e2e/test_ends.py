"""Models' processes end in order: when their model is loaded again, and when the server stops."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.server import until
from tests.e2e.stub_statuses import WatchedServer, watched_server


def _post(server: WatchedServer, path: str, **payload: object) -> None:
    request = urllib.request.Request(server.url(path), json.dumps(payload).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.status == 200


def _num_served(server: WatchedServer) -> int:
    """As the metrics port says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=60) as reply:
        found = re.search(r'^nv_llm_requests_total\{finish_reason="length",.*\} (\d+)', reply.read().decode(), re.M)
    return int(found[1]) if found else -1


def test_ends_every_process_ends_without_a_signal_and_a_core_loaded_again_keeps_its_metrics(tmp_path: Path) -> None:
    """Triton's stub dies of metrics that live at its end, and Triton shares metrics between an old core and a new."""
    repository = build(make_checkpoint(tmp_path / "checkpoint", "llama"), tmp_path / "repository")
    options = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=30")
    with watched_server(repository, tmp_path / "server", *options) as server:
        _post(server, "/v2/models/ensemble/generate", text_input="hello", max_tokens=3, ignore_eos=True)
        until(lambda: _num_served(server) == 1, 60, "the first request is counted")
        config = repository / "core" / "config.pbtxt"
        config.write_text(config.read_text() + "\n# changed\n")
        (repository / "core" / "1" / "engine.json").touch()
        _post(server, "/v2/repository/models/core/load")
        # One process more: Triton asks every model for its configuration before it loads it.
        until(lambda: [model for model, _ in server.statuses()].count("core") == 3, 60, "the old core has ended")
        _post(server, "/v2/models/ensemble/generate", text_input="hello", max_tokens=3, ignore_eos=True)
        until(lambda: _num_served(server) == 2, 60, "the second request is counted beside the first")
    assert server.process.returncode == 0
    statuses = server.statuses()
    assert [model for model, _ in statuses].count("core") == 4
    assert all(status == 0 for _, status in statuses), statuses
