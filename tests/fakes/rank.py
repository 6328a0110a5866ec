"""A part of a network that is only a sum, and the process of a rank that computes it, well or badly.

python -m tests.fakes.rank CONDUCT DESCRIPTOR
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.tensorrt.double import communicators
from tests.tensorrt.double.communicators import Communicator
from trident_backend.engine.protocol import EngineSpec, StepBatch
from trident_backend.engine.tensorrt import rank_process
from trident_backend.engine.tensorrt.parallel import Join, RankPart, load_rank
from trident_ensemble.contract.errors import EngineError, PlanError
from trident_ensemble.contract.manifest import Manifest

#: The first token of a step at which a rank shows its conduct.
CUE = 666
SPEC = EngineSpec(vocab_size=1, max_num_seqs=4, max_num_tokens=8, max_seq_len=8, block_size=8, num_blocks=4)


class FakeDevice:
    """No GPU."""

    def select(self) -> None:
        """There is nothing to select."""


class SumPart:
    """Each rank adds its number, from 1, times the step's tokens."""

    def __init__(self, rank: int, conduct: str, join: Join) -> None:
        self.spec = SPEC
        self._factor = rank + 1
        self._conduct = conduct
        if conduct == "stops in loading":
            os.kill(os.getpid(), signal.SIGSTOP)
        self._communicator = Communicator.of(join(FakeDevice()))
        if conduct == "hangs in joining":
            time.sleep(600)
        if conduct == "dies in the first run":
            os._exit(5)
        self._communicator.collective("ALL_REDUCE", "SUM", np.zeros(1, np.float32))
        if conduct == "hangs when it is loaded":
            time.sleep(600)

    def submit(self, batch: StepBatch) -> None:
        """Keep the step."""
        self._batch = batch

    def collect(self) -> Any:
        """The sum over all ranks, `[1, 1]`."""
        batch = self._batch
        if len(batch.token_ids) and batch.token_ids[0] == CUE:
            self._misbehave()
        own = np.array([[batch.token_ids.sum() * self._factor]], np.float32)
        return self._communicator.collective("ALL_REDUCE", "SUM", own)

    def close(self) -> None:
        """Nothing to free."""
        if self._conduct == "stops in closing":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self._conduct == "dies in closing":
            os._exit(5)
        elif self._conduct == "fails in closing":
            raise EngineError("cudaFree failed")

    def _misbehave(self) -> None:
        if self._conduct == "is killed":
            print("these are", "my last words", sep="\n", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._conduct == "fails":
            raise EngineError("cudaGraphLaunch failed: unspecified launch failure")
        elif self._conduct == "breaks":
            raise IndexError("a defect")
        elif self._conduct == "hangs":
            time.sleep(600)


def load_well(_folder: Path, _manifest: Manifest, rank: int, _ordinal: int, join: Join) -> SumPart:
    """See `PartLoader`."""
    return SumPart(rank, "", join)


def main() -> None:
    """As `rank_process.main`, with this part."""
    conduct, descriptor = sys.argv[1:]
    if conduct == "cannot begin":
        print("ModuleNotFoundError: No module named 'tensorrt'", file=sys.stderr)
        sys.exit(1)
    sys.modules["nccl.core"] = communicators

    def load_part(_folder: Path, _manifest: Manifest, rank: int, _ordinal: int, join: Join) -> Any:
        if conduct == "has no room" and rank == 1:
            raise PlanError("GPU 1 has 0.50 GiB of free memory")
        if conduct == "talks nonsense":
            os.write(int(descriptor), b"GET / HTTP/1.1\r\n\r\n")
        return SumPart(rank, conduct if rank == 1 else "", join)

    def load(folder: Path, rank: int, ordinal: int, unique_id: Any) -> RankPart:
        return load_rank(folder, rank, ordinal, unique_id, load_part)

    rank_process.main(int(descriptor), load)


if __name__ == "__main__":
    main()
