"""Checkpoints as pickles, which are refused.

Owns the command that converts one, for the user to run. Never opens a pickle: it can run code.
"""

from __future__ import annotations

import shlex
from pathlib import Path

#: Where weights are, the likeliest names first; beside them lie pickles of other things, which are none.
_WEIGHTS = ("pytorch_model*.bin", "consolidated*.pth", "model*.pt", "*.bin", "*.pth", "*.pt")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "trainer_state")
_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    'parts = [torch.load(f, map_location="cpu", weights_only=True) for f in sys.argv[2:]]; '
    "tensors = {name: part[name].clone().contiguous() for part in parts for name in part}; "
    'save_file(tensors, sys.argv[1], {"format": "pt"})'
)


def pickle_advice(folder: Path, target: str) -> str | None:
    """Return what to do about the folder's pickles, with the command that writes `target` beside them.

    The command reads tensors only, with `weights_only`. Returns None where there are no pickles of weights.
    """
    for pattern in _WEIGHTS:
        names = sorted(path.name for path in folder.glob(pattern) if not path.name.startswith(_NO_WEIGHTS))
        if names:
            sources = shlex.quote(str(folder / names[0]))
            if len(names) > 1:
                sources = f"{shlex.quote(str(folder))}/{pattern}"
            command = f"python -c {shlex.quote(_CONVERT)} {shlex.quote(str(folder / target))} {sources}"
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            return (
                f"{names[0]}{others} is a pickle, which can run code and is not read; convert it where torch and "
                f"safetensors are installed, and build again: {command}"
            )
    return None
