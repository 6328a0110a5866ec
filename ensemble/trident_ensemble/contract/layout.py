"""Where files lie in a model repository.

Owns the names of models, folders and files; never touches their contents. Everything is relative, so that a repository
can be moved, mounted or copied whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trident_ensemble.contract.errors import ArtifactError, ConfigError

PREPROCESSING = "preprocessing"
CORE = "core"
POSTPROCESSING = "postprocessing"
ENSEMBLE = "ensemble"
#: The name of the model that can never be loaded, by which a server withdraws its readiness.
DRAINING = "trident-draining"

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

_ASIDE = re.compile(r"aside-([1-9][0-9]*)")
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class ModelNames:
    """The names of the models that serve one checkpoint together: an ensemble, its three steps, and its unary front.

    Clients of tensorrtllm_backend know the models of the ensemble `ensemble` as `preprocessing`, `postprocessing` and
    so on; those of any other ensemble begin with its name, so that a repository can hold several.

    Args:
        ensemble: the name of the ensemble, from which all others follow.

    Raises:
        ConfigError: it cannot be the name of a model.
    """

    ensemble: str = ENSEMBLE

    def __post_init__(self) -> None:
        if not _MODEL_NAME.fullmatch(self.ensemble) or self.ensemble == DRAINING:
            raise ConfigError(
                f"{self.ensemble!r} is not the name of a model; it must begin with a letter, a digit or _, go on with "
                f"letters, digits and _.-, have at most 64 characters, and not be {DRAINING}"
            )

    @property
    def preprocessing(self) -> str:
        """The model that makes token ids of text."""
        return self._step(PREPROCESSING)

    @property
    def core(self) -> str:
        """The model that generates, whose version folder is the engine."""
        return self._step(CORE)

    @property
    def postprocessing(self) -> str:
        """The model that makes text of token ids."""
        return self._step(POSTPROCESSING)

    @property
    def unary(self) -> str:
        """The model that answers each request once."""
        return f"{self.ensemble}_unary"

    @property
    def steps(self) -> tuple[str, str, str]:
        """The models of the ensemble, in the order in which a request passes them."""
        return self.preprocessing, self.core, self.postprocessing

    @property
    def models(self) -> tuple[str, ...]:
        """All of the models."""
        return *self.steps, self.ensemble, self.unary

    def _step(self, name: str) -> str:
        return name if self.ensemble == ENSEMBLE else f"{self.ensemble}_{name}"


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


def version_numbers(model_folder: Path) -> list[int]:
    """Return the numbers of a model's version folders, ascending."""
    return sorted(int(entry.name) for entry in model_folder.glob("[0-9]*") if entry.name.isdigit() and entry.is_dir())


def aside_folder(model_folder: Path, version: int) -> Path:
    """Return the folder of a version that is kept and not served.

    Its name begins with a letter: Triton takes `2.old` for version 2.
    """
    return model_folder / f"aside-{version}"


def versions_aside(model_folder: Path) -> list[int]:
    """Return the numbers of the versions that are kept and not served, ascending."""
    found = (_ASIDE.fullmatch(entry.name) for entry in model_folder.glob("aside-*") if entry.is_dir())
    return sorted(int(match[1]) for match in found if match)


def engine_folder(own_model_folder: Path, core_model: str) -> Path:
    """Return the engine folder of the core model, given the folder of a model beside it."""
    return newest_version(own_model_folder.parent / core_model)
