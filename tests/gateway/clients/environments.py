"""The environments of the clients, and their scripts run in them.

Owns where they are, and what happens where one is missing. Never installs anything: `tools/setup_clients.sh` does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.child_processes import tied

ROOT = Path(__file__).parents[3]
_SCRIPTS = "tests.gateway.clients.scripts"
NODE = Path(__file__).with_name("node")

#: With the newest official client.
NEWEST = "clients"
#: With what holds it, and other packages, at other versions.
PINNED = "clients-pinned"

#: No client may ask anybody but the gateway, nor tell its makers anything.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "127.0.0.1",
}


def program(environment: str, name: str = "python") -> Path:
    """Return a program of an environment; without it the test is skipped, and fails where CI runs it."""
    path = ROOT / ".venv-clients" / environment / "bin" / name
    if not path.exists():
        _missing(f"{path} is not installed: tools/setup_clients.sh")
    return path


def node_program() -> str:
    """Return Node, if the client for it is installed too."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("node and npm, which installs its client, are not both on this machine")
    if not (NODE / "node_modules" / "openai").exists():
        _missing("the client for Node is not installed: tools/setup_clients.sh")
    return str(node)


def _missing(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def run_client(command: Sequence[str | Path], *, seconds: float = 400, stdin: str | None = None, **more: str) -> str:
    """Run a client to its end; return what it printed."""
    environment = {**os.environ, **_OFFLINE, **more}
    environment.pop("OPENAI_API_KEY", None)
    done = subprocess.run(
        tied([str(word) for word in command]), cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def run_script(environment: str, script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of conversations, given by its name, in an environment; return what became of each."""
    return read_outcomes(run_client([program(environment), "-m", f"{_SCRIPTS}.{script}", *arguments]))


def read_outcomes(printed: str) -> dict[str, Any]:
    """Return what a script printed in its last line: what became of each conversation."""
    outcomes: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return outcomes


def judge(exchanges: Sequence[dict[str, Any]], environment: str = NEWEST) -> list[list[str]]:
    """Return the problems of each exchange by the types of this environment's official client."""
    told = run_client([program(environment), "-m", f"{_SCRIPTS}.validate"], stdin=json.dumps(exchanges))
    problems: list[list[str]] = json.loads(told)["problems"]
    return problems
