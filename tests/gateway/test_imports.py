"""The modules that a gateway loads, which make its size and its image."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "numpy", "transformers", "tokenizers", "grpc", "tritonclient", "torch", "openvino", "locust", "llguidance",
    "jinja2", "fastapi", "pydantic", "tests",
)  # fmt: skip


@pytest.mark.parametrize(
    "module", ["trident_gateway.server", "trident_gateway.observing.otlp", "trident_tools.gateway"]
)
def test_imports_of_the_gateway_are_light(module: str) -> None:
    code = f"import sys, {module}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_imports_of_a_gateway_without_store_and_traces_are_without_those_packages() -> None:
    optional = ("redis", "opentelemetry")
    code = f"import sys, trident_gateway.server\nprint([name for name in {optional} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
