"""Every example of the README and of the page of requests, typed as it stands there, against the demo checkpoint."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, serve
from tests.gateway.clients.environments import NEWEST, program
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REQUESTS = (ROOT / "docs" / "requests.md").read_text()
DEMO = ROOT / "tools" / "demo" / "checkpoint"


def _blocks(language: str = "", page: str = README) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
    return [text for name, text in blocks if name == language]


def _commands(start: str) -> list[list[str]]:
    """Every command line of the README that begins so, split as a shell does."""
    lines = [line for block in _blocks() for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.removeprefix("$ ").startswith(start)]


def _trident(command: str) -> list[list[str]]:
    """The commands of one kind, with this Python and this machine's paths."""
    places = {"path/to/checkpoint": str(DEMO), "tools/demo/checkpoint": str(DEMO)}
    return [
        [sys.executable, "-m", "trident_tools.main", command, *(places.get(word, word) for word in words[2:])]
        for words in _commands(f".venv/bin/trident {command}")
    ]


def _run(command: list[str], folder: Path, given: str | None = None) -> str:
    outcome = subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True, timeout=300, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def openai_ports() -> list[int]:
    """For clients, and the private one."""
    return free_ports(2)


@pytest.fixture(scope="module")
def openai_port(openai_ports: list[int]) -> int:
    return openai_ports[0]


@pytest.fixture(scope="module")
def readme_server(folder: Path, openai_ports: list[int]) -> Iterator[Server]:
    """Built by the README's command under the demo's name, served with the options of its example and a gateway."""
    (build,) = (words for words in _trident("build") if "--engine" not in words)
    _run([*build, "--engine", "openvino", "--served-name", "trident-demo"], folder)
    options = max(_trident("serve"), key=len)[6:]
    assert options, "an example of serve has options"
    openai_port, private_port = openai_ports
    gateway = ("--openai-port", str(openai_port), "--openai-private-port", str(private_port))
    with serve(folder / "my_models", folder / "log", *options, *gateway) as running:
        wait_for(f"http://127.0.0.1:{openai_port}/v1/models/trident-demo")
        yield running


@pytest.fixture
def here(readme_server: Server, openai_port: int) -> Callable[[str], str]:
    """Puts the ports of this server into a text of the README."""
    ports = {"8000": readme_server.http, "8001": readme_server.grpc, "8080": f"127.0.0.1:{openai_port}"}

    def replaced(text: str) -> str:
        for port, place in ports.items():
            text = text.replace(f"localhost:{port}", place)
        return text

    return replaced


def wait_for(url: str) -> None:
    """Wait until a URL is answered with 200."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_readme_the_conversation(readme_server: Server, folder: Path) -> None:
    """Its questions; the answers may differ in a word from machine to machine."""
    transcript = next(block for block in _blocks() if "trident chat\n>" in block)
    questions = re.findall(r"^> (.*)$", transcript, re.M)
    command = [sys.executable, "-m", "trident_tools.main", "chat", "--url", readme_server.grpc]
    given = "".join(question + "\n" for question in questions)
    assert len(questions) == 3
    assert len(_run(command, folder, given).splitlines()) >= 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_readme_the_examples_with_curl(here: Callable[[str], str], folder: Path) -> None:
    commands = _commands("curl")
    assert len(commands) >= 2
    for command in commands:
        reply = _run([*map(here, command), "--fail-with-body"], folder)
        parts = [json.loads(line.removeprefix("data:")) for line in reply.splitlines() if line.strip()]
        texts = [part["text_output"] for part in parts if "text_output" in part]
        texts += [choice["message"]["content"] for part in parts for choice in part.get("choices", ())]
        assert "".join(texts).strip()


@pytest.mark.parametrize("example", [*_blocks("python"), *_blocks("python", REQUESTS)])
def test_readme_the_examples_in_python(example: str, here: Callable[[str], str], folder: Path) -> None:
    """The official client of OpenAI's API has an environment of its own."""
    python = str(program(NEWEST)) if "openai" in example else sys.executable
    assert _run([python, "-c", here(example)], folder).strip()


def test_readme_bench_and_the_simulations_of_it(readme_server: Server, folder: Path) -> None:
    """With less time and fewer users than there."""
    (bench,) = _trident("bench")
    metrics = f"http://{readme_server.host}:{readme_server.metrics_port}/metrics"
    here = ["--url", readme_server.grpc, "--metrics-url", metrics]
    shorter = {"1,4,16": "1,4", "5": "1", "10": "3"}
    _run([*(shorter.get(word, word) for word in bench), *here], folder)
    assert (folder / "bench.html").stat().st_size > 0
    for simulate in _trident("simulate"):
        assert re.search(r"time to first token|TTFT", _run(simulate, folder), re.I)


def test_readme_what_there_is_to_install_is_what_make_knows() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(_blocks()), re.M)
    makefile = (ROOT / "Makefile").read_text()
    assert {"serve", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
