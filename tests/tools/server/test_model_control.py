"""What readiness is withdrawn with: what tritonserver is told, and what is asked of it."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from trident_tools.server.model_control import ModelControl
from trident_tools.server.triton_server import Listen


def test_model_control_the_models_are_loaded_and_only_this_command_controls_them(tmp_path: Path) -> None:
    one, other = (ModelControl(tmp_path / name, Listen("127.0.0.1", 1, 2, 3)) for name in ("one", "other"))
    options = one.options(["core", "ensemble"])
    assert [word for word in options if "load-model" in word] == ["--load-model=core", "--load-model=ensemble"]
    ((header, secret),) = one.headers.items()
    assert [word for word in options if secret in word] == [
        f"--http-restricted-api=model-repository:{header}={secret}",
        f"--grpc-restricted-protocol=model-repository:{header}={secret}",
    ]
    assert len(secret) == 32
    assert one.headers != other.headers
    (model,) = (tmp_path / "one").iterdir()
    assert f"--load-model={model.name}" not in options


def test_model_control_what_security_advises_can_stand_beside_it(tmp_path: Path) -> None:
    """tritonserver does not start where two restrictions name the same kind of call."""
    page = Path(__file__).parents[3] / "docs" / "security.md"
    options = ModelControl(tmp_path, Listen("127.0.0.1", 1, 2, 3)).options([])
    for name in ("--http-restricted-api", "--grpc-restricted-protocol"):
        advised, own = (
            re.findall(rf"{name}=([\w,-]+):", text) for text in (page.read_text(encoding="utf-8"), "\n".join(options))
        )
        assert (len(advised), len(own)) == (1, 1)
        kinds = [kind for group in advised + own for kind in group.split(",")]
        assert sorted(kinds) == ["logging", "model-repository", "shared-memory", "trace"]


def test_model_control_the_server_is_asked_for_the_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["trident-control"]))
            self.send_error(400, "it cannot be loaded")

        def log_message(self, *_arguments: object) -> None:
            """Be quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        control = ModelControl(tmp_path, Listen("0.0.0.0", server.server_port, 2, 3))  # noqa: S104
        control.withdraw_readiness()
    (model,) = tmp_path.iterdir()
    assert asked == [(f"/v2/repository/models/{model.name}/load", control.headers["trident-control"])]


def test_model_control_a_server_that_does_not_answer_is_an_os_error(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    with pytest.raises(OSError, match="refused"):
        ModelControl(tmp_path, Listen("127.0.0.1", port, 2, 3)).withdraw_readiness()
