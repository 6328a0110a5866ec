"""The double's plans: a recorded network and the bounds of its optimization profiles.

Owns the form of the file. Never runs one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.tensorrt.program import Program
from trident_ensemble.contract.errors import ArtifactError

_MAGIC = b"DOUBLE01"
#: The smallest, the usual and the largest shape of an input.
Bounds = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class PlanFile:
    """What `build_serialized_network` writes."""

    program: Program
    profiles: tuple[dict[str, Bounds], ...]

    def save(self) -> bytes:
        text = json.dumps(self.profiles).encode()
        return b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, self.program.save()])

    @classmethod
    def load(cls, blob: bytes) -> PlanFile:
        """Raises ArtifactError if it is none."""
        if blob[: len(_MAGIC)] != _MAGIC:
            raise ArtifactError("Serialization assertion failed: this is no plan of this TensorRT")
        start = len(_MAGIC) + 8
        end = start + int.from_bytes(blob[len(_MAGIC) : start], "little")
        profiles = tuple(
            {name: (tuple(low), tuple(usual), tuple(high)) for name, (low, usual, high) in profile.items()}
            for profile in json.loads(blob[start:end])
        )
        return cls(Program.load(blob[end:]), profiles)
