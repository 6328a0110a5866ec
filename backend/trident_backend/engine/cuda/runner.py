"""The launches of a program on the engine's memory.

Owns which addresses and grids each launch is given, and their order within body and head. Never owns memory, and never
decides what a step computes or how large it is launched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trident_backend.engine.cuda.step_memory import Partials, StepMemory
from trident_backend.engine.cuda.weight_memory import WeightMemory
from trident_backend.engine.gpu.block_pool import BlockPool
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.program import Argument, AttentionCall, Count, Kind, Launch, Program, StepInput
from trident_backend.engine.gpu.step_inputs import StepGrids, StepInputBuffer

Numbers = dict[str, int | float]


@dataclass(frozen=True)
class _Bound:
    """A launch with the arguments that are the same in every step; `counted` are those that are its tokens or rows."""

    launch: Launch
    arguments: Numbers
    counted: tuple[str, ...]


@dataclass(frozen=True)
class _BoundAttention:
    """The attention of a layer, with the arguments of each of its kernels."""

    call: AttentionCall
    write: Numbers
    few: Numbers
    many: Numbers
    merge_few: Numbers
    merge_many: Numbers


class ProgramRunner:
    """Enqueues a program's launches.

    Args:
        program: `check_program` has nothing against it.
        kernels: its kernels.
        inputs: where the small inputs of a step lie.
        pool: the KV cache.
        weights: its weights.
        memory: where the results go.
    """

    def __init__(
        self,
        program: Program,
        kernels: KernelLibrary,
        *,
        inputs: StepInputBuffer,
        pool: BlockPool,
        weights: WeightMemory,
        memory: StepMemory,
    ) -> None:
        self._kinds = program.attention_kinds
        self._kernels = kernels
        self._addresses: Mapping[Kind, Mapping[str, int]] = {
            Kind.VALUE: {value.name: memory.arena + value.offset for value in program.values},
            Kind.WEIGHT: weights.addresses,
            Kind.INPUT: {name.value: inputs.address(name) for name in StepInput},
        }
        self._logits = memory.logits
        self._body = [
            self._bind(each) if isinstance(each, Launch) else self._bind_attention(each, inputs, pool, memory)
            for each in program.body
        ]
        self._head = [self._bind(launch) for launch in program.head]

    def enqueue_body(self, num_tokens: int, grids: StepGrids) -> None:
        """Enqueue the body.

        Args:
            num_tokens: as many as the step is padded to.
            grids: items and merges of attention, those of the step or more; what there is none of is not launched.

        Raises:
            EngineError: the driver refuses a launch.
        """
        for each in self._body:
            if isinstance(each, _Bound):
                self._enqueue(each, Count.TOKENS, num_tokens)
            else:
                self._attend(each, num_tokens, grids)

    def enqueue_head(self, num_rows: int) -> None:
        """Enqueue the head.

        Args:
            num_rows: as many as the rows of the step are padded to, at least one.

        Raises:
            EngineError: the driver refuses a launch.
        """
        for each in self._head:
            self._enqueue(each, Count.ROWS, num_rows)

    def _enqueue(self, bound: _Bound, counted: Count, count: int) -> None:
        launch = bound.launch
        if launch.takes(count):
            x, y, z = (extent.of({counted: count}) for extent in launch.grid)
            self._kernels.launch(launch.kernel, (x, y, z), {**bound.arguments, **dict.fromkeys(bound.counted, count)})

    def _attend(self, bound: _BoundAttention, num_tokens: int, grids: StepGrids) -> None:
        number = bound.call.kind
        kind = self._kinds[number]
        self._kernels.launch(kind.write, (num_tokens, 1, 1), bound.write)
        for name, count, arguments in (
            (kind.few, grids.few[number], bound.few),
            (kind.many, grids.many[number], bound.many),
            (kind.merge_few, grids.merges_few[number], bound.merge_few),
            (kind.merge_many, grids.merges_many[number], bound.merge_many),
        ):
            if count:
                self._kernels.launch(name, (count, kind.num_programs, 1), arguments)

    def _bind(self, launch: Launch) -> _Bound:
        names = tuple(name for name, argument in launch.arguments.items() if argument.kind is Kind.COUNT)
        fixed = {name: self._resolve(argument) for name, argument in launch.arguments.items() if name not in names}
        return _Bound(launch, fixed, names)

    def _bind_attention(
        self, call: AttentionCall, inputs: StepInputBuffer, pool: BlockPool, memory: StepMemory
    ) -> _BoundAttention:
        values = self._addresses[Kind.VALUE]
        out = values[call.out]
        cache: Numbers = {"key_cache": pool.key_cache(call.layer), "value_cache": pool.value_cache(call.layer)}
        own = {name: self._resolve(argument) for name, argument in call.arguments.items()}
        factors = {name: own[name] for name in ("key_factor", "value_factor")}
        shared = {
            **own,
            **cache,
            "out": out,
            "queries": values[call.query],
            "tables": inputs.tables,
            "window": self._kinds[call.kind].window,
        }
        new = {"keys": values[call.key], "values": values[call.value], "places": inputs.places}
        few, many = _partials(memory.few), _partials(memory.many)
        return _BoundAttention(
            call=call,
            write={**cache, **factors, **new},
            few={**shared, **few, "items": inputs.items_few(call.kind)},
            many={**shared, **many, "items": inputs.items_many(call.kind)},
            merge_few={"out": out, **few, "merges": inputs.merges_few(call.kind)},
            merge_many={"out": out, **many, "merges": inputs.merges_many(call.kind)},
        )

    def _resolve(self, argument: Argument) -> int | float:
        if argument.kind is Kind.NUMBER:
            return argument.number
        if argument.kind is Kind.NOTHING:
            return 0
        if argument.kind is Kind.LOGITS:
            return self._logits
        return self._addresses[argument.kind][argument.name]


def _partials(partials: Partials) -> Numbers:
    return {"partial_out": partials.out, "partial_stats": partials.stats}
