"""The lines of a plan: what is said of rotary factors that depend on the longest sequence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.checkpoints import edit_json, make_checkpoint
from trident_compiler.compiler_choice import CompilerChoice
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.openvino.compiler import OpenVINOCompiler
from trident_compiler.planning.machine import Machine
from trident_compiler.planning.memory_plan import LimitsRequest
from trident_tools.building.plan_lines import plan_lines

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_seq_len", "words"),
    [
        (64, "the short factors, as no sequence has more than 64 tokens"),
        (65, "the long factors, as sequences may have more than 64 tokens: .*--max-seq-len 64 takes the short ones"),
    ],
)
def test_plan_lines_say_which_rotary_factors_an_engine_has(max_seq_len: int, words: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama")
    edit_json(folder / "config.json", rope_parameters=LONGROPE)
    checkpoint, compiler = open_checkpoint(folder), OpenVINOCompiler(Machine(2**30, "test"))
    precision = compiler.precision(checkpoint, "fp32", None)
    plan = compiler.plan(checkpoint, precision, LimitsRequest(4, 64, max_seq_len=max_seq_len))
    lines = dict(plan_lines(checkpoint, CompilerChoice(compiler, "as asked", ()), precision, plan, ""))
    assert re.match(words, lines["rotary"])
