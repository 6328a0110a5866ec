"""NCCL communicators, through which the devices of one network exchange their parts.

Owns the calls of `nccl4py`, NVIDIA's Python bindings, and their errors. TensorRT runs the collectives itself, once an
execution context has been given the communicator. Never starts a rank.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from trident_ensemble.contract.errors import ArtifactError, EngineError

_CAPSULE_NAME = b"ncclComm_t"


class Communicator:
    """One rank's end of a communicator.

    Args:
        communicator: NCCL's.
    """

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator

    @property
    def capsule(self) -> object:
        """The capsule for `IExecutionContext.set_communicator`; it must not outlive this."""
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        capsule: object = new(self._communicator.ptr, _CAPSULE_NAME, None)
        return capsule

    def close(self) -> None:
        """Free the communicator once nothing uses it. Waits for every rank to do the same."""
        self._communicator.destroy()


def make_unique_id() -> bytes:
    """Return a new unique id, which one rank makes and all ranks of one communicator must have.

    Raises:
        ArtifactError: NCCL is not installed.
        EngineError: NCCL failed.
    """
    nccl = _import_nccl()
    return bytes(_call("get_unique_id", nccl.get_unique_id))


def join(num_ranks: int, rank: int, unique_id: bytes) -> Communicator:
    """Return this rank's end, on the calling thread's GPU, once every rank has joined.

    Raises:
        ArtifactError: NCCL is not installed.
        EngineError: NCCL failed.
    """
    nccl = _import_nccl()
    shared = nccl.UniqueId.from_bytes(unique_id)
    return Communicator(_call("Communicator.init", lambda: nccl.Communicator.init(num_ranks, rank, shared)))


def _call(name: str, function: Any) -> Any:
    try:
        return function()
    except Exception as error:  # the bindings' own classes of errors, and those of loading the library
        raise EngineError(f"NCCL: {name} failed: {error}") from None


def _import_nccl() -> Any:
    try:
        return importlib.import_module("nccl.core")
    except ImportError as error:
        raise ArtifactError(
            f"tensor_parallel: several GPUs need NCCL's Python bindings ({error}): pip install nccl4py nvidia-nccl-cu13"
        ) from None
