"""The bill of materials lists what is in an image, in a form that others read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.daemon import Docker
from tests.containers.images import ROOT, Images

PROGRAMS = ROOT / ".venv-clients" / "manifests" / "bin"
CHECK = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(str(JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()) or "") or None)
"""


@pytest.mark.skipif(not (PROGRAMS / "cyclonedx-py").exists(), reason="tools/setup_clients.sh installs cyclonedx-py")
def test_sbom_lists_every_package_of_an_image_and_is_valid(docker: Docker, images: Images, tmp_path: Path) -> None:
    file = tmp_path / "gateway.cdx.json"
    subprocess.run(
        [sys.executable, "tools/sbom.py", images.gateway, str(file), "--docker", docker.client],
        cwd=ROOT, env=docker.environment, check=True, timeout=120,
    )  # fmt: skip
    text = file.read_text(encoding="utf-8")
    checked = subprocess.run(
        [PROGRAMS / "python", "-c", CHECK], input=text, capture_output=True, text=True, check=False, timeout=120
    )
    assert checked.returncode == 0, checked.stderr
    bill = json.loads(text)
    assert bill["metadata"]["component"]["name"] == "trident-gateway"
    listed = {component["purl"].split("?")[0] for component in bill["components"] if "purl" in component}
    lock = (ROOT / "locks" / "gateway-image.txt").read_text(encoding="utf-8")
    locked = {
        f"pkg:pypi/{name}@{version}" for name, version in re.findall(r"^([\w.-]+)==(\S+) \\$", lock, re.MULTILINE)
    }
    assert locked
    assert locked <= listed
    assert any(place.startswith("pkg:deb/debian/libc6@") for place in listed)
    assert not any("numpy" in place for place in listed)
