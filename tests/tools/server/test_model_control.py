"""What readiness is withdrawn with: what tritonserver is told, and what is asked of it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

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


class Models(BaseHTTPRequestHandler):
    """Answers as tritonserver does about two models, and about loading."""

    asked: ClassVar[list[tuple[str, str | None]]] = []
    loaded: ClassVar[list[dict[str, Any]]] = []
    refuses = False
    hangs_up_on = ""

    def do_GET(self) -> None:
        tensor = {"name": "text", "data_type": "TYPE_STRING", "dims": [1], "optional": False}
        config = {"input": [tensor], "output": [{**tensor, "name": "ids"}], "max_batch_size": 8}
        if self.path == "/v2/models/ensemble/config":
            config["ensemble_scheduling"] = {}
        self.answer(200, json.dumps(config))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        self.asked.append((self.path, self.headers["trident-control"]))
        if self.hangs_up_on and self.path.endswith(self.hangs_up_on):
            return
        if body:
            self.loaded.append(json.loads(json.loads(body)["parameters"]["config"]))
        self.answer(200 if body and not self.refuses else 400, "it cannot be loaded")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Be quiet."""


@pytest.fixture
def models() -> Iterator[tuple[type[Models], int]]:
    class Fresh(Models):
        asked: ClassVar[list[tuple[str, str | None]]] = []
        loaded: ClassVar[list[dict[str, Any]]] = []

    with HTTPServer(("127.0.0.1", 0), Fresh) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Fresh, server.server_port
        server.shutdown()
        thread.join(60)


def test_model_control_the_server_is_asked_for_the_model_that_cannot_be_loaded(
    tmp_path: Path, models: tuple[type[Models], int]
) -> None:
    handler, port = models
    control = ModelControl(tmp_path, Listen("0.0.0.0", port, 2, 3))  # noqa: S104
    control.withdraw_readiness()
    (model,) = tmp_path.iterdir()
    secret = control.headers["trident-control"]
    assert handler.asked == [(f"/v2/repository/models/{model.name}/{verb}", secret) for verb in ("unload", "load")]


@pytest.mark.parametrize("silent", ["/unload", "/load"])
def test_model_control_readiness_is_withdrawn_also_where_a_call_is_not_answered(
    tmp_path: Path, models: tuple[type[Models], int], silent: str
) -> None:
    """Whatever the first call has met with, the second is what withdraws; and whoever called may try again."""
    handler, port = models
    handler.hangs_up_on = silent
    control = ModelControl(tmp_path, Listen("127.0.0.1", port, 2, 3))
    with pytest.raises(OSError, match=r"^(?!.*refused)"):
        control.withdraw_readiness()
    assert [path.rpartition("/")[2] for path, _ in handler.asked] == ["unload", "load"]


@pytest.mark.parametrize(
    ("names", "step"),
    [
        (["core", "ensemble", "postprocessing", "preprocessing"], "preprocessing"),
        (["a_core", "a_postprocessing", "a_preprocessing", "ensemble"], "a_preprocessing"),
    ],
)
def test_model_control_no_model_that_is_loaded_again_gives_readiness_back(
    tmp_path: Path, models: tuple[type[Models], int], names: list[str], step: str
) -> None:
    """Triton would let the next withdrawal wait until the core, of which there is another version, is loaded."""
    handler, port = models
    control = ModelControl(tmp_path, Listen("127.0.0.1", port, 2, 3))
    control.options(names)
    control.give_readiness_back()
    (config,) = handler.loaded
    assert config["ensemble_scheduling"]["step"][0]["model_name"] == step


def test_model_control_readiness_is_given_back_by_another_name_for_a_model_that_is_no_ensemble(
    tmp_path: Path, models: tuple[type[Models], int]
) -> None:
    handler, port = models
    control = ModelControl(tmp_path, Listen("127.0.0.1", port, 2, 3))
    control.options(["ensemble", "preprocessing"])
    control.give_readiness_back()
    (config,) = handler.loaded
    (step,) = config["ensemble_scheduling"]["step"]
    assert step["model_name"] == "preprocessing"
    assert (step["input_map"], step["output_map"]) == ({"text": "text"}, {"ids": "ids"})
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}]
    handler.refuses = True
    with pytest.raises(OSError, match="it cannot be loaded"):
        control.give_readiness_back()
    control.options(["ensemble"])
    with pytest.raises(OSError, match="no model"):
        control.give_readiness_back()


def test_model_control_a_server_that_does_not_answer_is_an_os_error(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    with pytest.raises(OSError, match="refused"):
        ModelControl(tmp_path, Listen("127.0.0.1", port, 2, 3)).withdraw_readiness()
