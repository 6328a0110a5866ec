"""The architectures of GGUF files that are imported.

Owns the list, and the choice by `general.architecture`. Never describes one.
"""

from __future__ import annotations

from trident_compiler.gguf.architectures.gemma import GEMMA
from trident_compiler.gguf.architectures.latent import LATENT
from trident_compiler.gguf.architectures.llama_like import LLAMA_LIKE
from trident_compiler.gguf.architectures.mixtures import MIXTURES
from trident_compiler.gguf.architectures.model import Architecture, Model
from trident_compiler.gguf.architectures.older import OLDER
from trident_compiler.gguf.gguf_file import GgufFile
from trident_compiler.gguf.layout import Source

#: By `general.architecture`.
ARCHITECTURES: dict[str, Architecture] = LLAMA_LIKE | GEMMA | MIXTURES | LATENT | OLDER
_KEY, _PARTS = "general.architecture", "split.count"


def read_model(file: GgufFile) -> Model:
    """Return the model that a file holds.

    Raises:
        CheckpointError: its architecture is not known, or a key or tensor of it is missing or not what it should be.
    """
    if file.metadata.integer(_PARTS, 1, least=0) > 1:
        raise file.metadata.refuse(_PARTS, "a part of a model; put the parts together with llama-gguf-split --merge")
    name = file.metadata.values.get(_KEY)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise file.metadata.refuse(_KEY, f"not imported; {', '.join(sorted(ARCHITECTURES))} are")
    return ARCHITECTURES[name](Source(file, name))
