"""Every example of the README, typed as it stands there, against the demo checkpoint."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, serve

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
DEMO = ROOT / "tools" / "demo" / "checkpoint"


def _blocks(language: str = "") -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
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
def readme_server(folder: Path) -> Iterator[Server]:
    """Built by the README's command, served with the options of its example."""
    (build,) = (words for words in _trident("build") if "--engine" not in words)
    _run([*build, "--engine", "openvino"], folder)
    options = max(_trident("serve"), key=len)[6:]
    assert options, "an example of serve has options"
    with serve(folder / "my_models", folder / "log", *options) as running:
        yield running


def _here(text: str, server: Server) -> str:
    return text.replace("localhost:8000", server.http).replace("localhost:8001", server.grpc)


def test_readme_the_conversation(readme_server: Server, folder: Path) -> None:
    """Its questions; the answers may differ in a word from machine to machine."""
    transcript = next(block for block in _blocks() if "trident chat\n>" in block)
    questions = re.findall(r"^> (.*)$", transcript, re.M)
    command = [sys.executable, "-m", "trident_tools.main", "chat", "--url", readme_server.grpc]
    given = "".join(question + "\n" for question in questions)
    assert len(questions) == 3
    assert len(_run(command, folder, given).splitlines()) >= 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_readme_the_examples_with_curl(readme_server: Server, folder: Path) -> None:
    commands = _commands("curl")
    assert len(commands) >= 2
    for command in commands:
        words = [_here(word, readme_server) for word in command]
        reply = _run([*words, "--fail-with-body"], folder)
        texts = [json.loads(line.removeprefix("data:")) for line in reply.splitlines() if line.strip()]
        assert "".join(part["text_output"] for part in texts if "text_output" in part).strip()


def test_readme_the_examples_in_python(readme_server: Server, folder: Path) -> None:
    for example in _blocks("python"):
        assert _run([sys.executable, "-c", _here(example, readme_server)], folder).strip()


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
