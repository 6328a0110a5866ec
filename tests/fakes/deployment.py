"""A repository that looks like a built one to `trident serve`, with models of plain Python that need no engine.

The core streams one token for each token of the prompt, `DELAY_S` apart, says how many requests it holds, and heeds
the drain notice, as the real one does. Postprocessing has two instances.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports
from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    Compiler,
    Generation,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    write_manifest,
)
from trident_ensemble.draining import ENVIRONMENT_VARIABLE

DELAY_S = 0.1

_PREPROCESSING = """
import numpy as np, triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0]
            ids = np.frombuffer(text, np.uint8).astype(np.int32).reshape(1, -1)
            answers.append(pb.InferenceResponse([pb.Tensor("input_ids", ids)]))
        return answers
"""

_CORE = f"""
import os, threading, time
import numpy as np, triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self._lock, self._active = threading.Lock(), 0
        gauge = pb.MetricFamily.GAUGE
        self._family = pb.MetricFamily(name="nv_trt_llm_request_metrics", description="requests", kind=gauge)
        self._metric = self._family.Metric(labels={{"request_type": "active", "model": "core"}})
        self._count(0)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if os.path.exists(os.environ["{ENVIRONMENT_VARIABLE}"]):
                refusal = pb.TritonError("the server is shutting down", pb.TritonError.UNAVAILABLE)
                sender.send(pb.InferenceResponse(error=refusal), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            self._count(1)
            ids = pb.get_input_tensor_by_name(request, "input_ids").as_numpy()
            threading.Thread(target=self._answer, args=(ids, sender)).start()

    def _answer(self, ids, sender):
        for place in range(ids.shape[1]):
            time.sleep({DELAY_S})
            response = pb.InferenceResponse([pb.Tensor("output_ids", ids[:, place : place + 1])])
            last = place == ids.shape[1] - 1
            sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
        self._count(-1)

    def _count(self, change):
        with self._lock:
            self._active += change
            self._metric.set(self._active)
"""

_POSTPROCESSING = """
import numpy as np, triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            ids = pb.get_input_tensor_by_name(request, "output_ids").as_numpy().reshape(-1)
            text = np.array([[bytes(ids.astype(np.uint8))]], np.object_)
            answers.append(pb.InferenceResponse([pb.Tensor("text_output", text)]))
        return answers
"""

_TEXT_IN = 'input [{name: "text_input" data_type: TYPE_STRING dims: [1]}]'
_TEXT_OUT = 'output [{name: "text_output" data_type: TYPE_STRING dims: [1]}]'
_IDS = "data_type: TYPE_INT32 dims: [-1]"

_CONFIGS = {
    "preprocessing": f'backend: "python" max_batch_size: 8 {_TEXT_IN} output [{{name: "input_ids" {_IDS}}}]',
    "core": (
        'backend: "python" max_batch_size: 1 model_transaction_policy {decoupled: true}'
        f' input [{{name: "input_ids" {_IDS}}}] output [{{name: "output_ids" {_IDS}}}]'
    ),
    "postprocessing": (
        'backend: "python" max_batch_size: 8 dynamic_batching {preserve_ordering: true}'
        f' instance_group [{{count: 2 kind: KIND_CPU}}] input [{{name: "output_ids" {_IDS}}}] {_TEXT_OUT}'
    ),
    "ensemble": (
        f'platform: "ensemble" max_batch_size: 1 {_TEXT_IN} {_TEXT_OUT} ensemble_scheduling {{step ['
        '{model_name: "preprocessing" model_version: -1'
        ' input_map {key: "text_input" value: "text_input"} output_map {key: "input_ids" value: "input_ids"}},'
        '{model_name: "core" model_version: -1'
        ' input_map {key: "input_ids" value: "input_ids"} output_map {key: "output_ids" value: "output_ids"}},'
        '{model_name: "postprocessing" model_version: -1'
        ' input_map {key: "output_ids" value: "output_ids"} output_map {key: "text_output" value: "text_output"}}]}'
    ),
    "ensemble_unary": f'backend: "python" max_batch_size: 8 {_TEXT_IN} output [{{name: "input_ids" {_IDS}}}]',
}
_MODELS = {
    "preprocessing": _PREPROCESSING,
    "core": _CORE,
    "postprocessing": _POSTPROCESSING,
    "ensemble_unary": _PREPROCESSING,
}


def make_repository(folder: Path, models: Mapping[str, str] | None = None) -> Path:
    """Write the repository; `models` replaces the source of some."""
    for name, config in _CONFIGS.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}" {config}\n', encoding="utf-8")
    for name, source in {**_MODELS, **(models or {})}.items():
        (folder / name / "1" / "model.py").write_text(source, encoding="utf-8")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture("llama", num_layers=2, vocab_size=256),
        limits=Limits(max_num_seqs=4, max_num_tokens=64, max_seq_len=128),
        precision=Precision("fp32", "fp32", "u8"),
        kv_cache=KVLayout(block_size=32, num_blocks=16, block_bytes=1024),
        compiler=Compiler("none", "0"),
        generation=Generation((0,), temperature=0.0, top_k=0, top_p=1.0),
        digests={},
    )
    write_manifest(folder / "core" / "1", manifest)
    return folder


@dataclass
class Deployment:
    """A running `trident serve`; `output` grows while it runs."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    output: Path

    @property
    def text(self) -> str:
        """All it has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def group(self) -> list[int]:
        """The processes that name its ports or its temporary folder: tritonserver and the stubs."""
        return [pid for pid, words in _processes() if f"--http-port={self.http_port}" in words or self._is_stub(words)]

    def stubs(self, model: str) -> list[int]:
        """The processes of one model."""
        return [pid for pid, words in _processes() if self._is_stub(words) and f"/{model}" in words[1]]

    def shared_memory(self) -> set[Path]:
        """What its stubs have mapped."""
        paths: set[Path] = set()
        for pid in self.stubs(""):
            words = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").split()
            paths.update(Path(word) for word in words if word.startswith("/dev/shm/"))  # noqa: S108
        return paths

    def wait(self, seconds: float) -> int:
        """Its exit status."""
        return self.process.wait(seconds)

    def _is_stub(self, words: Sequence[str]) -> bool:
        return len(words) > 1 and words[0].endswith("_stub") and words[1].startswith(str(self.output.parent))


def _processes() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")


def command(*arguments: object) -> list[str]:
    """The command `trident`."""
    return [sys.executable, "-m", "trident_tools.main", *map(str, arguments)]


def without_gateway(options: Sequence[object]) -> list[str]:
    """What keeps `trident serve` from its usual port for OpenAI's API, unless options speak of one."""
    return [] if any("openai" in str(option) for option in options) else ["--no-openai"]


@contextlib.contextmanager
def deploy(repository: Path, *options: object) -> Iterator[Deployment]:
    """Start `trident serve`; whatever happens, nothing of it is left afterwards."""
    http, grpc, metrics = free_ports(3)
    words = command(
        *("serve", "--repository", repository, "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics),
        # Nobody balances load here, and a test that ends would wait for the delay that containers have.
        *("--drain-delay", 0, *without_gateway(options)),
        *options,
    )
    output = repository.parent / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(output.parent)}
        )
    deployment = Deployment(process, http, grpc, metrics, output)
    try:
        yield deployment
    finally:
        process.kill()
        process.wait()
        for pid in deployment.group():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_ready(deployment: Deployment, seconds: float = 300) -> None:
    """Wait for the announcement."""
    deadline = time.monotonic() + seconds
    while "Ready after" not in deployment.text:
        assert deployment.process.poll() is None, deployment.text
        assert time.monotonic() < deadline, deployment.text
        time.sleep(0.1)


def is_ready(deployment: Deployment) -> bool:
    """What Triton says about itself."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{deployment.http_port}/v2/health/ready", timeout=10):
            return True
    except OSError:
        return False
