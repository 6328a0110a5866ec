"""The double's machine code: a small JSON text that says which kernel it stands for.

Owns the form of the text, and what a launch of a kernel does to the double's memory: it runs the kernel's twin in
numpy, or, with the environment variable DOUBLE_INTERPRETS, its source in Triton's interpreter.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.cuda import twins
from tests.cuda.calls import Call
from tests.tensorrt.double import faults
from tests.tensorrt.double.gpu import GPUS, Fault

_MAGIC = "double of a cubin"
_INVALID_IMAGE, _NO_BINARY = 200, 209
_ILLEGAL_ADDRESS, _MISALIGNED_ADDRESS, _LAUNCH_FAILED = 700, 716, 719
#: Kernels are compiled for addresses that are multiples of so many bytes.
_ALIGNMENT = 16
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Cubin:
    """A kernel that was not compiled; its parts are named as those of `trident_backend`'s `Kernel`.

    Args:
        capability: of the GPUs that it is for.
        entry: its name.
        function: its source.
        num_threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        parameters: names and types.
        constants: what was fixed when it was compiled.
    """

    capability: tuple[int, int]
    entry: str
    function: str
    num_threads: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]
    constants: Mapping[str, int | float | bool]

    def save(self) -> bytes:
        """Return the text."""
        return json.dumps({"magic": _MAGIC, **self.__dict__}).encode()

    @classmethod
    def load(cls, image: bytes) -> Cubin:
        """Read the text.

        Raises:
            Fault: it is none, or for other GPUs.
        """
        try:
            parts = json.loads(image)
        except ValueError as error:
            raise Fault(_INVALID_IMAGE, str(error)) from error
        if not isinstance(parts, dict) or parts.pop("magic", "") != _MAGIC:
            raise Fault(_INVALID_IMAGE, "this is no double of a cubin")
        parts["capability"] = tuple(parts["capability"])
        parts["parameters"] = tuple((name, dtype) for name, dtype in parts["parameters"])
        found = cls(**parts)
        (major, minor), (own_major, own_minor) = found.capability, GPUS.capability
        # Machine code from 9.0 on is for one kind of GPU, earlier code for later ones of its major number too.
        if major != own_major or minor > own_minor or (major > 8 and minor != own_minor):
            raise Fault(_NO_BINARY, f"{found.entry} is for {found.capability}")
        return found

    def run(self, grid: Grid, arguments: Mapping[str, int | float]) -> None:
        """Compute what the kernel would.

        Raises:
            Fault: memory was touched that is none of the kernel's, or the twin does not take the call.
        """
        types = dict(self.parameters)
        for name, dtype in self.parameters:
            if dtype.startswith("*") and int(arguments[name]) % _ALIGNMENT:
                raise Fault(_MISALIGNED_ADDRESS, f"{self.function}: {name} is at {int(arguments[name]):#x}")
        if code := faults.due(self.function):
            raise Fault(code, f"{self.function} was told to fail")
        try:
            self._compute()(grid, types, arguments)
        except Fault as fault:
            traceback.print_exc()
            raise Fault(fault.code, f"{self.function} of {self.entry}: {fault}") from fault
        except Exception as error:  # whatever it is, a GPU says that the launch failed
            traceback.print_exc()
            raise Fault(_LAUNCH_FAILED, f"{self.function} of {self.entry}, {grid}: {error!r}") from error

    def _compute(self) -> Callable[[Grid, Mapping[str, str], Mapping[str, int | float]], None]:
        if not os.environ.get("DOUBLE_INTERPRETS"):
            return lambda grid, types, arguments: twins.run(
                self.function, Call(grid, types, self.constants, arguments, GPUS.view)
            )
        from tests.cuda.interpreting import interpret  # noqa: PLC0415 (imports Triton, which few tests do)

        return lambda grid, types, arguments: interpret(
            self.function, grid, types, self.constants, arguments, view=GPUS.view
        )


def report(why: str) -> None:
    """Say on stderr what is wrong with a call, of which its caller sees a number alone."""
    print(f"double: {why}", file=sys.stderr, flush=True)
