"""Where files lie in a model repository.

Owns the names of models, folders and files; never touches their contents. Everything is relative, so that a repository
can be moved, mounted or copied whole.
"""

from __future__ import annotations

from pathlib import Path

from trident_ensemble.contract.errors import ArtifactError

PREPROCESSING = "preprocessing"
CORE = "core"
POSTPROCESSING = "postprocessing"
ENSEMBLE = "ensemble"
UNARY = "ensemble_unary"
MODELS = (PREPROCESSING, CORE, POSTPROCESSING, ENSEMBLE, UNARY)

BACKEND = "trident"
CONFIG_FILE = "config.pbtxt"
MODEL_FILE = "model.py"
MANIFEST_FILE = "engine.json"
NETWORK_FILE = "network.xml"
WEIGHTS_FILE = "network.bin"
#: TensorRT only: one plan for each operation of sampling on the device.
SAMPLING_FOLDER = "sampling"
TOKENIZER_FOLDER = "tokenizer"
#: The tokenizer itself, in the tokenizer's folder and in a checkpoint.
TOKENIZER_FILE = "tokenizer.json"
#: The kind of each token id, by which the core cuts a stream into chunks that decode exactly.
TOKEN_TABLE_FILE = "token_table.npy"  # noqa: S105 (a file's name)
#: The arguments of each of the checkpoint's chat templates.
TEMPLATE_PROFILES_FILE = "chat_templates.json"


def plan_file(rank: int, num_devices: int) -> str:
    """Return the name of TensorRT's plan for one device's share of the network."""
    return "network.plan" if num_devices == 1 else f"network.{rank}.plan"


def newest_version(model_folder: Path) -> Path:
    """Return the version folder that Triton serves by default, the one with the highest number.

    Raises:
        ArtifactError: the model has no version folder.
    """
    versions = [entry for entry in model_folder.glob("[0-9]*") if entry.name.isdigit() and entry.is_dir()]
    if not versions:
        raise ArtifactError(f"{model_folder.name}: no version folder; run `trident build` into this repository first")
    return max(versions, key=lambda entry: int(entry.name))


def engine_folder(own_model_folder: Path, core_model: str) -> Path:
    """Return the engine folder of the core model, given the folder of a model beside it."""
    return newest_version(own_model_folder.parent / core_model)
