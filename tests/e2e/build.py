"""Builds a repository as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def build(checkpoint: Path, repository: Path, *options: str, python: str | None = None) -> Path:
    """`trident build` for CPUs, in fp32, with a small KV cache and prompt metrics unless the options say otherwise.

    `python` is that of the installation of Trident that builds.
    """
    command = [
        python or sys.executable,
        "-m",
        "trident_tools.main",
        "build",
        str(checkpoint),
        "--repository",
        str(repository),
    ]
    defaults = {"--engine": "openvino", "--precision": "fp32", "--kv-cache": "64MiB", "--metrics-period-ms": "100"}
    for option, value in defaults.items():
        if option not in options:
            command += [option, value]
    outcome = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return repository
