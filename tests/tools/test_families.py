"""`trident families` as users call it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from trident_compiler.families.features import Feature
from trident_compiler.families.llama import LLAMA
from trident_compiler.families.registry import FAMILIES
from trident_tools import families
from trident_tools.main import main

#: Stand-ins for a family that every engine serves, and for one that one of them does not.
FREE = replace(LLAMA, model_types=("free",))
CAPPED = replace(LLAMA, model_types=("capped",), features=(Feature.SOFT_CAP,))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two families: what one of them may need is refused by each engine, or by none."""
    refusals: dict[str, Any] = {"openvino": {Feature.SOFT_CAP: "it has none"}, "tensorrt": {}}
    monkeypatch.setattr(families, "ENGINES", refusals)
    rows = families.supported([FREE, CAPPED])
    monkeypatch.setattr(families, "supported", lambda: rows)


@pytest.mark.usefixtures("known")
def test_families_says_what_serves_each_type_and_what_is_refused_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["capped", "tensorrt"]
    assert lines[1].strip() == "openvino: not with attn_logit_softcapping: it has none"
    assert lines[2].split() == ["free", "openvino,", "tensorrt"]


@pytest.mark.usefixtures("known")
def test_families_says_the_same_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--format", "json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first == {
        "model_type": "capped",
        "refused": {"openvino": {"attn_logit_softcapping": "it has none"}, "tensorrt": {}},
    }
    assert main(["families", "--format", "markdown"]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    module = "[llama](../tools/trident_compiler/families/llama.py)"
    assert row == f"| `capped` | {module} | not with `attn_logit_softcapping`: it has none | served |"


def test_families_lists_every_type_of_the_registry_once() -> None:
    listed = [row.model_type for row in families.supported()]
    assert listed == sorted({name for family in FAMILIES for name in family.model_types})
