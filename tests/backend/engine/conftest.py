"""Engines built once for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.checkpoints import reference_model
from tests.fakes.progress import SilentProgress
from tests.folder_marks import mark_folder
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import Engine
from trident_compiler.engine_builder import build_engine
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.openvino.compiler import OpenVINOCompiler
from trident_compiler.planning.machine import Machine
from trident_compiler.planning.memory_plan import LimitsRequest, parse_cache_size
from trident_preprocessing.chat.template_probe import write_template_profiles

pytest_ignore_collect, pytest_itemcollected = mark_folder("slow")

BuildAndLoad = Callable[..., Engine]
MACHINE = Machine(free_bytes=2**30, cpu="test")


def build(checkpoint: Path, folder: Path, precision: str = "fp32", weight_format: str | None = None) -> Path:
    """An engine folder with room for a few hundred blocks."""
    opened = open_checkpoint(checkpoint)
    compiler = OpenVINOCompiler(MACHINE)
    chosen = compiler.precision(opened, precision, weight_format)
    wanted = LimitsRequest(max_num_seqs=16, max_num_tokens=1024, cache=parse_cache_size("8192t"))
    folder.mkdir(parents=True)
    plan = compiler.plan(opened, chosen, wanted)
    build_engine(
        opened,
        folder,
        chosen,
        plan,
        compiler=compiler,
        describe_text=write_template_profiles,
        progress=SilentProgress(),
    )
    return folder


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> BuildAndLoad:
    """Loads the engine of a checkpoint, which is built once."""
    built: dict[tuple[Path, str, str | None], Path] = {}

    def build_and_load(checkpoint: Path, precision: str = "fp32", weight_format: str | None = None) -> Engine:
        key = (checkpoint, precision, weight_format)
        if key not in built:
            built[key] = build(checkpoint, tmp_path_factory.mktemp("engine") / "1", precision, weight_format)
        return load_engine(built[key])[0]

    return build_and_load


def reference_logits(model: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    """transformers' logits of one whole sequence, float32 `[len(tokens), vocab]`."""
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


__all__ = ["BuildAndLoad", "build", "engine_of", "reference_logits", "reference_model"]
