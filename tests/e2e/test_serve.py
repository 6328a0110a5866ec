"""`trident serve` with the real tritonserver and models of plain Python."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from tests.fakes.deployment import (
    DELAY_S,
    Deployment,
    command,
    deploy,
    is_ready,
    make_repository,
    wait_ready,
    without_gateway,
)
from tests.ports import free_ports
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.manifest import Compiler, read_manifest, write_manifest
from trident_tools.building.preflight import check_gpus

PROMPT = "x" * 30  # three seconds of streaming


class GrpcStream:
    """One gRPC stream: every answer or error, in order."""

    def __init__(self, deployment: Deployment, text: str) -> None:
        self.answers: queue.Queue[Any] = queue.Queue()
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{deployment.grpc_port}")
        self.client.start_stream(lambda result, error: self.answers.put(error or result))
        self.send(text)

    def send(self, text: str) -> None:
        tensor = grpc.InferInput("text_input", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], np.object_))
        self.client.async_stream_infer("ensemble", [tensor])

    def text(self, length: int, seconds: float = 60) -> str:
        parts: list[str] = []
        while len("".join(parts)) < length:
            answer = self.answers.get(timeout=seconds)
            if isinstance(answer, Exception):
                raise answer
            parts.append(answer.as_numpy("text_output").item().decode())
        return "".join(parts)


def generate_stream(deployment: Deployment, text: str) -> str:
    """The whole text of an HTTP stream."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{deployment.http_port}/v2/models/ensemble/generate_stream",
        json.dumps({"text_input": text}).encode(),
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        events = [line[len(b"data: ") :] for line in reply if line.startswith(b"data: ")]
    return "".join(json.loads(event)["text_output"] for event in events)


def gone(deployment: Deployment, seconds: float = 60) -> bool:
    """Whether every process of the server has ended."""
    deadline = time.monotonic() + seconds
    while deployment.group() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not deployment.group()


def test_serve_drain_finishes_what_is_in_flight_and_refuses_what_is_new(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository")) as deployment:
        wait_ready(deployment)
        assert f"http://localhost:{deployment.http_port}/v2/models/ensemble/generate" in deployment.text
        over_grpc = GrpcStream(deployment, PROMPT)
        over_http: list[str] = []
        reader = threading.Thread(target=lambda: over_http.append(generate_stream(deployment, PROMPT)))
        reader.start()
        assert over_grpc.text(3)
        deployment.process.send_signal(signal.SIGTERM)
        time.sleep(0.8)

        late = GrpcStream(deployment, "late")
        with pytest.raises(grpc.InferenceServerException, match="shutting down"):
            late.text(1)
        with pytest.raises(urllib.error.HTTPError) as refused:
            generate_stream(deployment, "late")
        assert refused.value.code in (400, 503)  # Triton 2.51 answers 400 whatever the code of the error
        assert "shutting down" in refused.value.read().decode()

        assert over_grpc.text(len(PROMPT) - 3) == PROMPT[3:]
        reader.join(60)
        assert over_http == [PROMPT]
        # Both gRPC streams are still open: Triton itself would wait for them for good.
        assert deployment.wait(60) == 0, deployment.text
        assert gone(deployment)


def test_serve_serves_on_for_the_delay_while_it_calls_itself_not_ready(tmp_path: Path) -> None:
    """Four seconds are enough to see it; the default in a container, 15 s, is the same mechanism."""
    with deploy(make_repository(tmp_path / "repository"), "--drain-delay", 4) as deployment:
        wait_ready(deployment)
        over_http: list[str] = []
        reader = threading.Thread(target=lambda: over_http.append(generate_stream(deployment, "x" * 100)))
        reader.start()
        deployment.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while is_ready(deployment):
            assert time.monotonic() - began < 60
        assert "not ready from now on, refusing in 4 s" in deployment.text
        assert "new ones are refused" not in deployment.text
        num_served, refusal = 0, ""
        while not refusal:
            try:
                num_served += generate_stream(deployment, "new") == "new"
            except urllib.error.HTTPError as error:
                refusal = error.read().decode()
            assert not is_ready(deployment)
        assert time.monotonic() - began >= 4
        assert num_served
        assert "shutting down" in refusal
        reader.join(60)
        assert over_http == ["x" * 100]
        assert deployment.wait(60) == 0, deployment.text


def test_serve_second_signal_skips_the_delay(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository"), "--drain-delay", 600) as deployment:
        wait_ready(deployment)
        deployment.process.send_signal(signal.SIGTERM)
        while "not ready from now on" not in deployment.text:
            time.sleep(0.05)
        assert deployment.process.poll() is None
        deployment.process.send_signal(signal.SIGTERM)
        assert deployment.wait(60) == 130
        assert gone(deployment)


def test_serve_drain_ends_when_its_time_is_over(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository"), "--drain-timeout", 1) as deployment:
        wait_ready(deployment)
        stream = GrpcStream(deployment, "x" * int(60 / DELAY_S))
        assert stream.text(1)
        deployment.process.send_signal(signal.SIGTERM)
        assert deployment.wait(60) == 1
        assert "1 requests still in flight after 1 s" in deployment.text
        assert gone(deployment)


def test_serve_second_signal_stops_at_once(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository")) as deployment:
        wait_ready(deployment)
        memory = deployment.shared_memory()
        assert len(memory) == 5
        stream = GrpcStream(deployment, "x" * int(60 / DELAY_S))
        assert stream.text(1)
        deployment.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert deployment.process.poll() is None
        deployment.process.send_signal(signal.SIGINT)
        assert deployment.wait(60) == 130
        assert gone(deployment)
        assert not any(path.exists() for path in memory)


def test_serve_dead_stub_ends_the_server(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository")) as deployment:
        wait_ready(deployment)
        memory = deployment.shared_memory()
        victim = deployment.stubs("postprocessing")[0]
        os.kill(victim, signal.SIGKILL)
        assert deployment.wait(60) == 1
        assert "model 'postprocessing', instance postprocessing_0_" in deployment.text
        assert f"(pid {victim}) died" in deployment.text
        assert gone(deployment)
        assert not any(path.exists() for path in memory)


def test_serve_dead_server_is_an_error(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository")) as deployment:
        wait_ready(deployment)
        server = next(pid for pid in deployment.group() if pid not in deployment.stubs(""))
        os.kill(server, signal.SIGKILL)
        assert deployment.wait(60) == 1
        assert "tritonserver died (killed by SIGKILL)" in deployment.text
        assert gone(deployment)


def test_serve_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository")) as deployment:
        wait_ready(deployment)
        assert len(deployment.group()) == 6
        deployment.process.kill()
        assert gone(deployment)


def test_serve_model_that_fails_to_load_is_explained_in_few_lines(tmp_path: Path) -> None:
    broken = 'raise ValueError("limits.max_num_seqs: bad")'
    with deploy(make_repository(tmp_path / "repository", {"core": broken})) as deployment:
        assert deployment.wait(300) == 1
        assert not is_ready(deployment)
        assert "tritonserver ended while loading" in deployment.text
        assert "limits.max_num_seqs: bad" in deployment.text
        assert len(deployment.text.splitlines()) < 12
        log = Path(deployment.text.split("The whole log: ")[1].strip())
        assert "failed to load 'core'" in log.read_text(encoding="utf-8")
        assert log.parent == tmp_path


def refusal(*arguments: object) -> str:
    """What `trident serve` says when it will not start; its ports are free unless the arguments name others."""
    http, grpc_port, metrics = free_ports(3)
    ports = ("--http-port", http, "--grpc-port", grpc_port, "--metrics-port", metrics)
    result = subprocess.run(
        command("serve", *ports, *without_gateway(arguments), *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stderr


def test_serve_a_core_that_dies_as_soon_as_it_is_ready_ends_the_server(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository")) as deployment:
        deadline = time.monotonic() + 300
        while not is_ready(deployment):
            assert time.monotonic() < deadline, deployment.text
            time.sleep(0.01)
        (victim,) = deployment.stubs("core")
        os.kill(victim, signal.SIGKILL)
        assert deployment.wait(60) == 1
        assert f"model 'core', instance core_0: its process (pid {victim}) died" in deployment.text


def test_serve_gpus_are_refused_by_an_engine_for_cpus(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    said = refusal("--repository", repository, "--gpu", "0")
    assert "--gpu: the engine was compiled by none for CPUs" in said
    assert "--engine tensorrt" in said


def make_gpu_repository(folder: Path, num_gpus: int) -> Path:
    """One whose manifest speaks of an engine for GPUs."""
    engine = make_repository(folder) / "core" / "1"
    compiler = Compiler("tensorrt", "11.0", "sm_89")
    write_manifest(engine, replace(read_manifest(engine), compiler=compiler, tensor_parallel=num_gpus))
    return folder


def test_serve_an_engine_for_gpus_is_not_served_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    said = refusal("--repository", make_gpu_repository(tmp_path / "repository", 1))
    assert "the engine was compiled for a GPU (sm_89), and CUDA finds none here" in said
    assert "--gpus all" in said
    assert len(said.splitlines()) == 1


class Cuda(ModuleType):
    """CUDA's runtime as far as it is asked here: two GPUs."""

    cudaError_t = Enum("cudaError_t", {"cudaSuccess": 0})  # noqa: N815 (CUDA's name)

    def cudaGetDeviceCount(self) -> tuple[Any, int]:  # noqa: N802
        return self.cudaError_t(0), 2


@pytest.mark.parametrize(
    ("num_parts", "gpus", "wrong"),
    [
        (1, (), None), (1, (1,), None), (2, (), None), (2, (1, 0), None),
        (1, (2,), "there is no GPU 2; CUDA finds 2 here"),
        (3, (), "there is no GPU 2"),
        (1, (0, 1), "--tensor-parallel 1, so it takes 1 GPU, not 2"),
        (2, (0,), "--tensor-parallel 2, so it takes 2 GPUs, not 1"),
    ],
)  # fmt: skip
def test_serve_an_engine_is_served_on_as_many_gpus_as_it_was_built_for(
    num_parts: int, gpus: tuple[int, ...], wrong: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Cuda("cuda.bindings.runtime"))
    manifest = read_manifest(make_gpu_repository(tmp_path / "repository", num_parts) / "core" / "1")
    with nullcontext() if wrong is None else pytest.raises(ServerError, match=wrong):
        check_gpus(gpus, manifest)


def test_serve_port_in_use_is_named(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal("--repository", repository, "--grpc-port", port)
    assert f"--grpc-port {port}: cannot listen on 127.0.0.1" in said


def test_serve_ports_must_be_valid_and_differ(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    assert "--http-port 70000: must be between 1 and 65535" in refusal("--repository", repository, "--http-port", 70000)
    port = free_ports(1)[0]
    said = refusal("--repository", repository, "--http-port", port, "--grpc-port", port)
    assert "must differ" in said


def test_serve_incomplete_repository_is_named(tmp_path: Path) -> None:
    assert "no such folder" in refusal("--repository", tmp_path / "nowhere")
    repository = make_repository(tmp_path / "repository")
    (repository / "core" / "1" / "engine.json").unlink()
    said = refusal("--repository", repository)
    assert "engine.json is missing" in said
    assert "trident build" in said
    (repository / "postprocessing" / "config.pbtxt").unlink()
    assert "no config.pbtxt for postprocessing" in refusal("--repository", repository)
