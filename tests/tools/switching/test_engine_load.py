"""The process that has an engine loaded: what it checks first, what it asks for, and what it says when that fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tritonclient.grpc

from tests.fakes.manifests import write_small_manifest
from tests.ports import free_ports
from trident_compiler.planning.machine import Machine
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.errors import ArtifactError, ServerError
from trident_ensemble.contract.manifest import KVLayout, Manifest, read_manifest, write_manifest
from trident_tools.building import memory_use
from trident_tools.switching.engine_load import EngineLoad, LoadOrder, carry_out

LIMIT_S = 60.0


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "2"
    folder.mkdir()
    write_small_manifest(folder, 64)
    (folder / "network.bin").write_bytes(b"weights")
    change(folder, digests=digest_folder(folder))
    return folder


def change(engine: Path, **fields: Any) -> None:
    write_manifest(engine, Manifest(**{**vars(read_manifest(engine)), **fields}))


def order(engine: Path, url: str = "somewhere:1") -> LoadOrder:
    return LoadOrder(url, {"trident-control": "secret"}, ("core", "ensemble"), str(engine))


class Client:
    """Writes down what Triton is asked."""

    asked: ClassVar[list[tuple[str, str, dict[str, str]]]] = []

    def __init__(self, url: str) -> None:
        self._url = url

    def load_model(self, name: str, headers: dict[str, str]) -> None:
        self.asked.append((self._url, name, headers))

    def close(self) -> None:
        pass


def test_engine_load_asks_for_the_core_first_with_the_secret_of_grpc(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "asked", [])
    monkeypatch.setattr(tritonclient.grpc, "InferenceServerClient", Client)
    carry_out(order(engine))
    headers = {"triton-grpc-protocol-trident-control": "secret"}
    assert Client.asked == [("somewhere:1", "core", headers), ("somewhere:1", "ensemble", headers)]


def test_engine_load_never_shows_triton_what_is_damaged_or_has_no_room(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "asked", [])
    monkeypatch.setattr(tritonclient.grpc, "InferenceServerClient", Client)
    change(engine, kv_cache=KVLayout(64, 4096, 1 << 20))
    monkeypatch.setattr(memory_use, "this_machine", lambda: Machine(3 << 30, "test"))
    with pytest.raises(ServerError, match=r"version 2 takes 4\.00 GiB, and there is 3\.00 GiB of free memory"):
        carry_out(order(engine))
    (engine / "network.bin").write_bytes(b"weightz")
    with pytest.raises(ArtifactError, match="the file has changed"):
        carry_out(order(engine))
    assert Client.asked == []


def outcome(load: EngineLoad) -> str:
    deadline = time.monotonic() + LIMIT_S
    while (failure := load.failure()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return failure


def test_engine_load_process_says_in_one_line_why_it_failed(engine: Path) -> None:
    (port,) = free_ports(1)
    nobody = outcome(EngineLoad(order(engine, f"127.0.0.1:{port}")))
    assert nobody
    assert "\n" not in nobody
    (engine / "network.bin").unlink()
    assert outcome(EngineLoad(order(engine))) == "digests.network.bin: the file is missing"
    load = EngineLoad(order(engine))
    load.stop()
    assert outcome(load) == "it was stopped"
