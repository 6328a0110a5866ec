"""The GGML project's own converter, as a program: one GGUF file of each checkpoint's folder that is named.

Owns what stands between the converter and a folder without a real tokenizer: a vocabulary of its own, and keys that
only the hub's config.json has. It runs in a process of its own, whose path has the converter's packages before all
others.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 96


def _set_vocabulary(model: Any) -> None:
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(33 + number) for number in range(VOCABULARY - 4)]
    writer.add_token_list(["<pad>", "<s>", "</s>", *letters, letters[0] + letters[1]])
    writer.add_token_types([3, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def main(folders: list[str]) -> None:
    """Write FOLDER.gguf for each FOLDER; FOLDER/hub.json has keys to add to what the converter reads."""
    import gguf  # noqa: PLC0415

    # The converter is newer than the constants that its package carries.
    for number, name in enumerate(("DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2", "DSPARK_CONF_PROJ")):
        if not hasattr(gguf.MODEL_TENSOR, name):
            setattr(gguf.MODEL_TENSOR, name, 9000 + number)
    conversion = importlib.import_module("conversion")

    for folder in map(Path, folders):
        hub = json.loads((folder / "hub.json").read_text())
        convert = conversion.get_model_class(hub.pop("architecture"))
        convert.set_vocab = _set_vocabulary
        model = convert(folder, gguf.LlamaFileType.ALL_F32, folder.with_suffix(".gguf"))
        model.hparams.update(hub)
        model.write()


if __name__ == "__main__":
    main(sys.argv[1:])
