"""What is rendered, and the Dockerfile, break no policy but those that docker/checkov.yaml gives reasons for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.charts import COMBINED, template
from tests.kubernetes.rendering import KUBERNETES, OVERLAYS, ROOT, render
from tests.programs import needs

CONFIG = ROOT / "docker/checkov.yaml"
_OWN = ROOT / ".venv-clients/manifests/bin/checkov"
CHECKOV = str(_OWN) if _OWN.exists() else shutil.which("checkov")

needs_checkov = pytest.mark.skipif(CHECKOV is None, reason="checkov is missing: tools/setup_clients.sh installs it")


def reasons() -> dict[str, str]:
    """What is skipped, and the comment above it."""
    text = CONFIG.read_text().partition("skip-check:\n")[2]
    found = re.findall(r"((?:^  # .+\n)+)  - (\w+)$", text, re.MULTILINE)
    return {check: comment for comment, check in found}


def failures(folder: Path, config: Path) -> dict[str, set[str]]:
    """The checks that fail, each with where it does; the whole folder at once, as a start takes seconds."""
    assert CHECKOV is not None
    command = [CHECKOV, "--config-file", str(config), "--directory", str(folder), "--output", "json", "--soft-fail"]
    # Without a proxy or a cache of its own: whatever it would fetch fails at once.
    environment = {**os.environ, "HOME": str(folder.parent), "LOG_LEVEL": "ERROR", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    assert {one["check_type"] for one in reports} == {"kubernetes", "dockerfile"}
    found: dict[str, set[str]] = {}
    for report in reports:
        assert report["summary"]["parsing_errors"] == 0
        assert report["summary"]["passed"] > 0
        for failed in report["results"]["failed_checks"]:
            found.setdefault(failed["check_id"], set()).add(f"{Path(failed['file_path']).name}: {failed['resource']}")
    return found


def test_policies_that_are_skipped_have_reasons() -> None:
    skipped = yaml.safe_load(CONFIG.read_text())["skip-check"]
    assert sorted(reasons()) == sorted(skipped)


@needs("kubectl", "Kubernetes' own packages, which have it as kubectl")
@needs_checkov
@pytest.mark.slow
def test_policies_are_broken_only_where_a_reason_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    folder.mkdir()
    # The chart's objects are the overlays', as another test shows; here are those that no overlay has.
    releases = {**{one: render(one) for one in OVERLAYS}, "chart": template(COMBINED)}
    written: set[str] = set()
    for name, objects in releases.items():
        texts = [yaml.dump(one, Dumper=yaml.CSafeDumper) for one in objects]
        # Most objects are the same in several overlays, and are looked at once.
        (folder / f"{name}.yaml").write_text("---\n".join(text for text in texts if text not in written))
        written.update(texts)
    shutil.copy(KUBERNETES.parent / "Dockerfile", folder)
    # All at once without the skips: what fails is then exactly what is skipped, and no skip outlives its reason.
    config = yaml.safe_load(CONFIG.read_text())
    skipped = set(config.pop("skip-check"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    found = failures(folder, tmp_path / "config.yaml")
    assert {check: places for check, places in found.items() if check not in skipped} == {}
    assert skipped - found.keys() == set(), "skipped without need"
