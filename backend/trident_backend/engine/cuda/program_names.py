"""The check that every name in a program stands for something in it, and that its launches follow one another.

Owns what is true of any program that is written, whether or not a host can run it. Never opens a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trident_backend.engine.gpu.names import ALIGNMENT
from trident_backend.engine.gpu.program import (
    Argument,
    AttentionCall,
    Count,
    Kernel,
    Kind,
    Launch,
    Program,
    StepInput,
)
from trident_ensemble.contract.errors import ArtifactError

#: The parameters of the kernels of attention that a layer says; all others are the host's.
ATTENTION_ARGUMENTS = frozenset({"scale", "softcap", "sinks", "slopes", "key_factor", "value_factor"})


def check_names(program: Program) -> None:
    """Refuse a program whose names, offsets or launches do not hold together.

    Raises:
        ArtifactError: names the field.
    """
    _Checks(program).check()


class _Checks:
    """The checks of a program whose fields are of the right types."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._known: Mapping[Kind, frozenset[str]] = {
            Kind.VALUE: _unique("values", (value.name for value in program.values)),
            Kind.WEIGHT: _unique("weights", (weight.name for weight in program.weights)),
            Kind.INPUT: frozenset(StepInput),
            Kind.COUNT: frozenset((Count.TOKENS, Count.ROWS)),
        }

    def check(self) -> None:
        """Refuse what does not hold together.

        Raises:
            ArtifactError: names the field.
        """
        for i, weight in enumerate(self._program.weights):
            if weight.offset % ALIGNMENT:
                raise ArtifactError(f"program.weights[{i}].offset: {weight.offset} is no multiple of {ALIGNMENT}")
        for i, value in enumerate(self._program.values):
            if value.offset % ALIGNMENT or value.offset > self._program.arena_bytes:
                raise ArtifactError(
                    f"program.values[{i}].offset: {value.offset} is no multiple of {ALIGNMENT} within the arena "
                    f"of {self._program.arena_bytes} bytes"
                )
        self._check_kinds()
        self._check_body()
        for i, launch in enumerate(self._program.head):
            self._check_launch(launch, f"program.head[{i}]", Count.ROWS)

    def _check_kinds(self) -> None:
        for i, kind in enumerate(self._program.attention_kinds):
            for name in ("write", "few", "many", "merge_few", "merge_many"):
                self._kernel(getattr(kind, name), f"program.attention_kinds[{i}].{name}")

    def _check_body(self) -> None:
        layer = 0
        for i, each in enumerate(self._program.body):
            where = f"program.body[{i}]"
            if isinstance(each, Launch):
                self._check_launch(each, where, Count.TOKENS)
                continue
            if each.layer != layer:
                raise ArtifactError(f"{where}.layer: {each.layer} comes where layer {layer} is due")
            self._check_attention(each, where)
            layer += 1

    def _check_attention(self, call: AttentionCall, where: str) -> None:
        if call.kind >= len(self._program.attention_kinds):
            raise ArtifactError(f"{where}.kind: there are {len(self._program.attention_kinds)} kinds, not {call.kind}")
        for field in ("query", "key", "value", "out"):
            self._check_argument(Argument(Kind.VALUE, getattr(call, field)), f"{where}.{field}")
        _check_names(call.arguments, ATTENTION_ARGUMENTS, f"{where}.arguments")
        for name, argument in call.arguments.items():
            self._check_argument(argument, f"{where}.arguments.{name}")

    def _check_launch(self, launch: Launch, where: str, counted: Count) -> None:
        kernel = self._kernel(launch.kernel, f"{where}.kernel")
        _check_names(launch.arguments, [name for name, _ in kernel.parameters], f"{where}.arguments")
        for name, argument in launch.arguments.items():
            self._check_argument(argument, f"{where}.arguments.{name}")
        for axis, extent in enumerate(launch.grid):
            if extent.tile < 1 or extent.times < 1:
                raise ArtifactError(f"{where}.grid[{axis}]: tile and times must be at least 1")
            if extent.count not in (counted, Count.ONE):
                raise ArtifactError(f"{where}.grid[{axis}].count: {extent.count.value}, not {counted.value} or one")
        if launch.most and launch.most < launch.least:
            raise ArtifactError(f"{where}.most: {launch.most} is less than least {launch.least}")

    def _check_argument(self, argument: Argument, where: str) -> None:
        known = self._known.get(argument.kind)
        if known is not None and argument.name not in known:
            raise ArtifactError(f"{where}: there is no {argument.kind.value} {argument.name!r}")

    def _kernel(self, name: str, where: str) -> Kernel:
        kernel = self._program.kernels.get(name)
        if kernel is None:
            raise ArtifactError(f"{where}: there is no kernel {name!r}")
        return kernel


def _unique(field: str, names: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for i, name in enumerate(names):
        if name in found:
            raise ArtifactError(f"program.{field}[{i}].name: {name!r} is there twice")
        found.add(name)
    return frozenset(found)


def _check_names(given: Mapping[str, Argument], wanted: Sequence[str] | frozenset[str], where: str) -> None:
    if missing := sorted(set(wanted) - set(given)):
        raise ArtifactError(f"{where}.{missing[0]}: missing")
    if unknown := sorted(set(given) - set(wanted)):
        raise ArtifactError(f"{where}.{unknown[0]}: unknown parameter")
