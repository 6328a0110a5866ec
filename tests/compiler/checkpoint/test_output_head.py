"""Tied and untied heads, and checkpoints that say one thing and hold the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import edit_json, make_checkpoint, reference_model
from trident_compiler.checkpoint.tensor_files import SINGLE_FILE
from trident_compiler.model_folder import open_checkpoint
from trident_ensemble.contract.errors import CheckpointError

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head of its own."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", num_hidden_layers=1)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "llama"))


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    stored = {**load_file(folder / SINGLE_FILE), **tensors}
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, folder / SINGLE_FILE)


def test_output_head_that_differs_from_the_table_it_is_tied_to_is_refused(folder: Path, pristine: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(folder)
    for words in (
        "config.json: tie_word_embeddings = True",
        f"{HEAD} differs from {TABLE}",
        f"say false .* use {HEAD}",
    ):
        assert refusal.match(words)
    # transformers warns of such a checkpoint, and computes as that advice says.
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(reference_model(folder)(ids).logits, reference_model(pristine)(ids).logits)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert not open_checkpoint(folder).model.outline.is_tied


def test_output_head_that_equals_the_table_is_the_table(folder: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)
    table = load_file(folder / SINGLE_FILE)[TABLE]
    change(folder, **{HEAD: table.clone()})
    assert open_checkpoint(folder).model.outline.is_tied
    change(folder, **{HEAD: table.float()})
    assert open_checkpoint(folder).model.outline.is_tied
    change(folder, **{HEAD: None})
    assert open_checkpoint(folder).model.outline.is_tied


def test_output_head_that_is_missing_is_named_with_the_key(folder: Path) -> None:
    change(folder, **{HEAD: None})
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(folder)
    assert refusal.match(f"config.json: tie_word_embeddings = False: asks for a tensor {HEAD}, which .* lacks")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert open_checkpoint(folder).model.outline.is_tied
