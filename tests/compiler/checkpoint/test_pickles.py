"""Checkpoints as pickles are refused with a command, and the command does what it says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import make_checkpoint
from trident_compiler.checkpoint.tensor_files import SINGLE_FILE, TensorFiles
from trident_compiler.model_folder import open_checkpoint
from trident_ensemble.contract.errors import CheckpointError


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """A tied model's, whose head is the same memory as its table; one is a view of another's."""
    folder = make_checkpoint(tmp_path_factory.mktemp("llama") / "llama", num_hidden_layers=1, tie_word_embeddings=True)
    tensors: dict[str, torch.Tensor] = load_file(folder / SINGLE_FILE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.norm.weight"] = torch.stack([tensors["model.norm.weight"]] * 2, 1)[:, 0]
    return tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = make_checkpoint(tmp_path / "it's a model", num_hidden_layers=1, tie_word_embeddings=True)
    (folder / SINGLE_FILE).unlink()
    torch.save({}, folder / "training_args.bin")
    torch.save({}, folder / "optimizer.pt")
    return folder


def refusal_of(folder: Path) -> str:
    with pytest.raises(CheckpointError, match="no safetensors") as refusal:
        open_checkpoint(folder)
    return str(refusal.value)


def test_pickles_of_other_things_are_no_checkpoint(folder: Path) -> None:
    assert "the folder must hold model.safetensors or" in refusal_of(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "weights.pt"])
def test_pickles_are_converted_by_the_command_that_refuses_them(
    folder: Path, tensors: dict[str, torch.Tensor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tensors, folder / name)
    refusal = refusal_of(folder)
    assert f"{name} is a pickle, which can run code" in refusal
    python, option, code, *arguments = shlex.split(refusal[refusal.index("python -c") :])
    assert (python, option, arguments) == ("python", "-c", [str(folder / SINGLE_FILE), str(folder / name)])
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    exec(code, {})  # noqa: S102  # in a process of its own it would take seconds
    assert_equal(folder, tensors)


@pytest.mark.slow
def test_pickles_in_several_files_are_converted_into_one(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = sorted(tensors)
    for index, part in enumerate((names[:4], names[4:])):
        torch.save({name: tensors[name] for name in part}, folder / f"pytorch_model-0000{index + 1}-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    refusal = refusal_of(folder)
    assert "pytorch_model-00001-of-00002.bin (and 1 more) is a pickle" in refusal
    command = refusal[refusal.index("python -c") :].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    assert_equal(folder, tensors)


def assert_equal(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    assert open_checkpoint(folder).model.outline.is_tied
    found = TensorFiles(folder)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].values, tensor.view(torch.int16).numpy().view(np.uint16))
