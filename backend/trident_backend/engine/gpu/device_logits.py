"""A step's logits on the device: sampling's operations run there, and only what they find comes to the host.

Owns which run does what, in pieces that the operations' limits allow, and what is computed on the host after all. Never
samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from trident_backend.engine.gpu.names import Operand, Sampling
from trident_backend.engine.gpu.sampling_operations import Arrays, SamplingOperations
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import Doubles, FloatArray, Indices, Int32Array, RowPenalties, TokenIds


class DeviceLogits:
    """The logits of a step on the device, as `StepLogits`. Every operation raises EngineError where the device fails.

    Args:
        operations: the engine's.
        address: of the buffer, float32 `[operations.max_rows, V]`, which the step has written or will have before
            it reaches what is enqueued now.
        buffer_rows: `[R]`, where each row of the step lies in the buffer, each elsewhere.
    """

    def __init__(self, operations: SamplingOperations, address: int, buffer_rows: Int32Array) -> None:
        self._operations = operations
        self._address = address
        self._buffer_rows = buffer_rows.astype(np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        """R and V."""
        return len(self._buffer_rows), self._operations.vocab_size

    def argmax(self, rows: Indices) -> tuple[TokenIds, FloatArray]:
        """Find the likeliest tokens, as `StepLogits.argmax` does."""
        found = self._by_row(Sampling.ARGMAX, rows, {})
        return found[Operand.IDS].astype(np.int64), found[Operand.VALUES]

    def chunk_exp_sums(
        self, rows: Indices, maxima: FloatArray, temperatures: Doubles, floors: FloatArray | None = None
    ) -> Doubles:
        """Sum weights by chunk, as `StepLogits.chunk_exp_sums` does."""
        lowest = np.full(len(rows), -np.inf, np.float32) if floors is None else floors
        inverses = (1 / temperatures).astype(np.float32)
        inputs: Arrays = {Operand.MAXIMA: maxima, Operand.INVERSES: inverses, Operand.FLOORS: lowest}
        found = self._by_row(Sampling.CHUNK_EXP_SUMS, rows, inputs)
        return found[Operand.SUMS].astype(np.float64)

    def top_k(self, rows: Indices, count: int) -> tuple[FloatArray, TokenIds]:
        """Find the largest logits, as `StepLogits.top_k` does; on the host where none finds as many."""
        size = next((size for size in self._operations.sizes if size >= count), None)
        if size is None:
            return self._on_host(rows).top_k(np.arange(len(rows)), count)
        found = self._by_row(Sampling.top_k(size), rows, {})
        return found[Operand.VALUES][:, :count], found[Operand.IDS][:, :count].astype(np.int64)

    def find_ties(self, rows: Indices, values: FloatArray, counts: TokenIds) -> list[TokenIds]:
        """Find equal logits, as `StepLogits.find_ties` does; on the host for rows that want more than one finds."""
        if not len(rows):
            return []
        found = self._by_row(Sampling.FIND_TIES, rows, {Operand.VALUES: values})
        result = [
            ids[ids < self._operations.vocab_size][:count].astype(np.int64)
            for ids, count in zip(found[Operand.IDS], counts.tolist(), strict=True)
        ]
        for number in np.flatnonzero(counts > self._operations.num_ties):
            one = slice(number, number + 1)
            (result[number],) = self._on_host(rows[one]).find_ties(np.zeros(1, np.intp), values[one], counts[one])
        return result

    def read(self, rows: Indices, ids: TokenIds) -> FloatArray:
        """Read some logits, as `StepLogits.read` does."""
        rows, ids = np.broadcast_arrays(rows, ids)
        pairs = np.stack([self._buffer_rows[rows.reshape(-1)], ids.reshape(-1)], axis=1).astype(np.int32)
        size = self._operations.max_pairs
        parts = [
            self._operations.run(Sampling.READ, self._address, {Operand.PAIRS: pairs[start : start + size]})[
                Operand.VALUES
            ]
            for start in range(0, len(pairs), size)
        ]
        values: FloatArray = np.concatenate([np.empty(0, np.float32), *parts]).reshape(rows.shape)
        return values

    def write(self, rows: Indices, ids: TokenIds, values: FloatArray) -> None:
        """Change some logits, as `StepLogits.write` does."""
        self._write(self._address, self._operations.max_rows, self._buffer_rows[rows], ids, values)

    def penalise(self, rows: Indices, penalties: Sequence[RowPenalties]) -> None:
        """Apply penalties, as `StepLogits.penalise` does; the device keeps them, so that only new ones are uploaded."""
        operations = self._operations
        try:
            for part in self._parts(len(rows), min(operations.max_chosen, operations.num_table_rows)):
                changes = operations.penalty_rows.assign(penalties[part])
                for row in changes.cleared:
                    operations.device.fill_nan(
                        operations.table + row * operations.vocab_size * 4, operations.vocab_size * 4
                    )
                self._write(operations.table, operations.num_table_rows, changes.rows, changes.ids, changes.offsets)
                repetitions = np.array([each.repetition for each in penalties[part]], np.float32)
                inputs: Arrays = {Operand.TABLE_ROWS: changes.table_rows, Operand.REPETITIONS: repetitions}
                self._change(
                    Sampling.PENALISE, self._address, operations.max_rows, self._buffer_rows[rows[part]], inputs
                )
        except BaseException:
            operations.penalty_rows.forget()
            raise

    def apply_token_bitmask(self, rows: Indices, words: npt.NDArray[np.uint32]) -> None:
        """Ban tokens, as `StepLogits.apply_token_bitmask` does."""
        # Bit t % 32 of word t // 32 is bit t % 8 of byte t // 8, the words being little-endian.
        masks = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
        for part in self._parts(len(rows)):
            buffer_rows, inputs = self._buffer_rows[rows[part]], {Operand.MASKS: masks[part]}
            self._change(Sampling.APPLY_TOKEN_BITMASK, self._address, self._operations.max_rows, buffer_rows, inputs)

    def _by_row(self, name: str, rows: Indices, columns: Arrays) -> Arrays:
        """Run an operation that finds something for each row, in as many runs as it takes."""
        found = []
        for part in self._parts(len(rows)):
            inputs = {key: column[part] for key, column in columns.items()}
            inputs[Operand.ROWS] = self._buffer_rows[rows[part]]
            found.append(self._operations.run(name, self._address, inputs))
        return {key: np.concatenate([each[key] for each in found]) for key in found[0]}

    def _parts(self, num_rows: int, size: int | None = None) -> Iterator[slice]:
        """Yield slices of `size` rows, or of as many as a run takes."""
        size = size or self._operations.max_chosen
        for start in range(0, num_rows, size):
            yield slice(start, min(start + size, num_rows))

    def _write(self, address: int, num_rows: int, rows: Indices, ids: TokenIds, values: FloatArray) -> None:
        """Write pairs of a buffer `[num_rows, V]`; the pairs of one row are neighbours."""
        values = np.broadcast_to(values, rows.shape)
        numbers = np.cumsum(np.diff(rows, prepend=rows[:1]) != 0)
        chosen = rows[np.diff(numbers, prepend=-1) != 0].astype(np.int32)
        start = 0
        while start < len(rows):
            first = numbers[start]
            end = int(np.searchsorted(numbers, first + self._operations.max_chosen))
            end = min(end, start + self._operations.max_pairs)
            pairs = np.stack([numbers[start:end] - first, ids[start:end]], axis=1).astype(np.int32)
            block = chosen[first : numbers[end - 1] + 1]
            inputs = {Operand.PAIRS: pairs, Operand.VALUES: np.ascontiguousarray(values[start:end])}
            self._change(Sampling.WRITE, address, num_rows, block, inputs)
            start = end

    def _change(self, name: str, address: int, num_rows: int, buffer_rows: Int32Array, inputs: Arrays) -> None:
        """Run an operation that changes rows of a buffer, and copy them back."""
        self._operations.run(name, address, {Operand.ROWS: buffer_rows, **inputs}, num_rows)
        size = self._operations.vocab_size * 4
        for begin, end in _runs(buffer_rows):
            target, source = address + int(buffer_rows[begin]) * size, self._operations.changed + begin * size
            self._operations.device.copy(target, source, (end - begin) * size)

    def _on_host(self, rows: Indices) -> HostLogits:
        """Return a copy of some rows."""
        buffer_rows, device = self._buffer_rows[rows], self._operations.device
        array = np.empty((len(rows), self._operations.vocab_size), np.float32)
        for begin, end in _runs(buffer_rows):
            device.download(array[begin:end], self._address + int(buffer_rows[begin]) * self._operations.vocab_size * 4)
        device.synchronize()
        return HostLogits(array, NumpyKernels())


def _runs(buffer_rows: Int32Array) -> list[tuple[int, int]]:
    """Return where runs of neighbouring rows of the buffer begin and end."""
    begins = np.flatnonzero(np.diff(buffer_rows, prepend=-2) != 1).tolist()
    return list(zip(begins, [*begins[1:], len(buffer_rows)], strict=True))
