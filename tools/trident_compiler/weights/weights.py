"""Weights as the network takes them: values, their format, and scales where they are quantized.

Owns the choice of format for each role and the account of which tensors were used. Reads tensors one at a time and
releases their pages, so that no more than the converted weights stay in memory. Never knows a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.tensor_files import StoredTensor
from trident_compiler.weights import quantization
from trident_compiler.weights.formats import BF16, FP8, FP16, FP32, INT4, INT8, QUANTIZED, head_format, row_format
from trident_compiler.weights.roles import Role, Split
from trident_compiler.weights.sharding import WHOLE, ShardSpec
from trident_compiler.weights.tensor_parts import TensorPart
from trident_ensemble.contract.errors import CheckpointError

_ROW_SCALED = (INT8, FP8)
_PLAIN = {"BF16": BF16, "F16": FP16, "F32": FP32}


@dataclass(frozen=True)
class Weight:
    """One weight, in the format in which a network takes it.

    Args:
        name: unique among all weights of a network.
        format: bf16 (values are the uint16 of the bits), fp16, fp32, int8, int4 (two to a byte, low half first), or fp8
            (values are the uint8 of e4m3's bits).
        shape: logical shape, `[out, in]` for a matrix; a stack has one axis more in front, and so have its values,
            scales and zero points.
        values: in the weight's format; maps the checkpoint where nothing had to be converted.
        scales: float32; `[out, 1]` for int8 and fp8, `[out, groups]` for int4; None for plain formats.
        zero_points: uint8 `[out, groups]`, for int4 of 0..15 only: a value is `(stored - zero_point) * scale`. None for
            int4 of -8..7.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None = None
    zero_points: npt.NDArray[np.uint8] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the values, scales and zero points."""
        return sum(part.nbytes for part in (self.values, self.scales, self.zero_points) if part is not None)


class WeightSource:
    """Hands a family the weights it asks for, checked against the shape it expects; `Weights` of a checkpoint.

    Quantization spares what costs more quality than it saves: the output projection is int8 where matrices are int4,
    and plain where they are fp8; the embeddings, of which a step reads a few rows only, keep a plain format, unless
    both are one tensor that can be read both ways.

    Args:
        tensors: the checkpoint's.
        matrix_format: format of the linear layers.
        plain_format: format of what is not quantized: fp32 leaves tensors as they are stored, bf16 and fp16 turn them
            into 16 bits (fp16 only where no value overflows; bf16 only from fp32).
        tied: the output projection is the table of embeddings.
        uniform: every plain matrix takes `plain_format`, however it is stored; scales are rounded to it, int4 has no
            zero points, and no rows of a quantized head are looked up: a table tied to one comes in two formats.
        share: the device's share of the network. A family asks with the sizes of whole tensors and gets parts of
            those that devices share, with the same values as in the whole, except for int4 of row-parallel matrices,
            whose groups follow from the length of a part's rows.
        on_weight: called with the stored bytes of each tensor when it has been prepared.
    """

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        matrix_format: str,
        plain_format: str,
        *,
        tied: bool,
        uniform: bool = False,
        share: ShardSpec = WHOLE,
        on_weight: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._tensors = tensors
        self._matrix_format = matrix_format
        self._plain_format = plain_format
        self._tied = tied
        self._uniform = uniform
        self._share = share
        self._on_weight = on_weight
        self._used: dict[str, Weight] = {}
        self._mapped: dict[str, StoredTensor] = {}
        self._asked: set[str] = set()
        self._skipped: tuple[str, ...] = ()
        self._skipped_modules: tuple[str, ...] = ()

    @property
    def num_devices(self) -> int:
        """Devices that share the network."""
        return self._share.num_ranks

    def matrix(self, source: str | TensorPart, out_size: int, in_size: int, role: Role) -> Weight:
        """Return this device's part of the `[out, in]` weight of a linear layer, in its role's format."""
        weight = self._weight(source, (out_size, in_size), self._format_of(role), role.split)
        if role is not Role.EXACT or self._uniform or weight.format == FP32:
            return weight
        # Behind a few experts' router, OpenVINO's product with 16-bit weights ends the process (seen with 8, by AVX2).
        exact = replace(weight, format=FP32, values=quantization.to_float32(weight.values))
        self._used[exact.name] = exact
        return exact

    def stack(self, sources: Sequence[str | TensorPart], out_size: int, in_size: int, role: Role) -> Weight:
        """Return this device's part of several `[out, in]` weights, as one of `[members, out, in]`."""
        split = None if role.split is Split.HEADS else role.split
        members = self._members(sources, role)
        return self._stacked(
            members, [self._weight(each, (out_size, in_size), self._format_of(role), split) for each in members]
        )

    def embedding(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        """Return the `[vocab, hidden]` table."""
        if self._tied and self._uniform and self._head_format in QUANTIZED:
            return self._rows(source, vocab_size, hidden_size)
        wanted = self._head_format if self._tied else self._plain_format
        return self._weight(source, (vocab_size, hidden_size), wanted)

    def positions(self, source: str | TensorPart, num_positions: int, hidden_size: int) -> Weight:
        """Return the `[positions, hidden]` table, in the plain format."""
        return self._weight(source, (num_positions, hidden_size), self._plain_format)

    def head(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        """Return this device's rows of the `[vocab, hidden]` output projection."""
        return self._weight(source, (vocab_size, hidden_size), self._head_format, Role.HEAD.split)

    def vector(self, source: str | TensorPart, size: int, role: Role = Role.VECTOR, *, plus: float = 0.0) -> Weight:
        """Return a norm's scale or a bias, exact, as float32; of one that devices share this device's part."""
        name, taken, stored = self._taken(source, (size,))
        part = quantization.to_float32(self._share.part(taken.values, role.split))
        values = part + np.float32(plus) if plus else part
        return self._keep(Weight(self._part_name(name, role.split), FP32, part.shape, values), stored, taken)

    def stacked_vector(self, sources: Sequence[str | TensorPart], size: int, role: Role = Role.VECTOR) -> Weight:
        """Return several vectors as one of `[members, size]`, of those that devices share this device's part."""
        of_each = Role.VECTOR if role.split is Split.HEADS else role
        members = self._members(sources, role)
        return self._stacked(members, [self.vector(each, size, of_each) for each in members])

    def constant(self, name: str, values: npt.NDArray[np.float32], role: Role = Role.VECTOR) -> Weight:
        """Return values that follow from the configuration, of those that devices share this device's part."""
        part = self._share.part(values, role.split)
        return Weight(self._part_name(name, role.split), FP32, part.shape, np.ascontiguousarray(part))

    def skip(self, *endings: str) -> None:
        """Accept tensors whose names end so without using them."""
        self._skipped += endings

    def skip_module(self, name: str) -> None:
        """Accept the tensors of a module without using them."""
        self._skipped_modules += (f"{name}.",)

    def release(self, weight: Weight) -> None:
        """Let go of the memory of a weight that has been handed out and written.

        Asked for again, it has no values, and scales that are all zero: its name is enough for whoever has written it.
        """
        if weight.name in self._used:
            self._used[weight.name] = replace(
                weight,
                values=np.empty(0, weight.values.dtype),
                scales=_nothing_like(weight.scales),
                zero_points=_nothing_like(weight.zero_points),
            )
        if (stored := self._mapped.pop(weight.name, None)) is not None:
            stored.release()

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights handed out and not released."""
        return sum(weight.num_bytes for weight in self._used.values() if weight.values.size)

    def require_all_used(self) -> None:
        """Refuse a checkpoint with tensors that the family neither asked for nor skipped: they would change the model.

        Raises:
            CheckpointError: names the first of them.
        """
        unasked = (name for name in self._tensors if name not in self._asked)
        skipped = self._skipped, self._skipped_modules
        extra = sorted(name for name in unasked if not name.endswith(skipped[0]) and not name.startswith(skipped[1]))
        if extra:
            raise CheckpointError(
                f"{extra[0]}: this tensor ({len(extra)} in all) is not part of the architecture that config.json names"
            )

    @property
    def _head_format(self) -> str:
        return head_format(self._matrix_format, self._plain_format)

    def _format_of(self, role: Role) -> str:
        return self._matrix_format if role.is_matrix else self._plain_format

    def _members(self, sources: Sequence[str | TensorPart], role: Role) -> Sequence[str | TensorPart]:
        """Return this device's members of a stack. Those of other devices are asked for there, and known here."""
        if role.split is not Split.HEADS:
            return sources
        names = (source if isinstance(source, str) else source.name for source in sources)
        self._asked.update(self._tensors[name].name for name in names if name in self._tensors)
        return sources[self._share.of(len(sources))]

    def _rows(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        """Return a tied table to look rows up in, apart from the output projection."""
        name, taken, _ = self._taken(source, (vocab_size, hidden_size))
        weight = replace(self._plain(taken, self._plain_format), name=f"{name} (rows)")
        self._used[weight.name] = weight
        return weight

    def _taken(self, source: str | TensorPart, shape: tuple[int, ...]) -> tuple[str, StoredTensor, StoredTensor]:
        """Return a weight's name, what is taken of the stored tensor, and the whole of that."""
        part = TensorPart(source, shape) if isinstance(source, str) else source
        stored = self._stored(part.name, part.shape)
        taken = replace(stored, values=part.take(stored.values))
        assert taken.values.shape == shape, f"{part.full_name}: a part of {taken.values.shape}, not {shape}"
        return part.full_name, taken, stored

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{name}: the checkpoint has no such tensor")
        if stored.values.shape != shape:
            raise CheckpointError(
                f"{name}: its shape is {list(stored.values.shape)}, config.json asks for {list(shape)}"
            )
        self._asked.add(stored.name)
        return stored

    def _part_name(self, name: str, split: Split | None) -> str:
        """Return a name that differs from the whole's: the head may be a part of the table of embeddings."""
        return name if split is None or self._share.num_ranks == 1 else f"{name}.part"

    def _weight(
        self, source: str | TensorPart, shape: tuple[int, int], wanted: str, split: Split | None = None
    ) -> Weight:
        full_name = source if isinstance(source, str) else source.full_name
        part_name = self._part_name(full_name, split)
        if part_name in self._used:
            return self._used[part_name]
        _, taken, stored = self._taken(source, shape)
        width = shape[1] // self._share.num_ranks if split is Split.IN else shape[1]
        wanted = row_format(wanted, width)
        convert = self._quantized if wanted in QUANTIZED else self._plain
        # A scale of a whole row is found before the row is cut.
        whole = split is None or (split is Split.IN and wanted in _ROW_SCALED)
        part = taken if whole else replace(taken, values=self._share.part(taken.values, split))
        weight = replace(convert(part, wanted), name=part_name)
        return self._keep(self._columns(weight) if whole and split is Split.IN else weight, stored, taken)

    def _stacked(self, sources: Sequence[str | TensorPart], members: Sequence[Weight]) -> Weight:
        """Put weights of one shape and one format into one; they and their pages are given back."""
        first = members[0]
        if len({member.format for member in members}) > 1:
            raise CheckpointError(f"{first.name}: it and others that are used with it are stored in different formats")
        weight = Weight(
            f"{first.name} and {len(members) - 1} more",
            first.format,
            (len(members), *first.shape),
            np.stack([member.values for member in members]),
            None if first.scales is None else np.stack([each.scales for each in members if each.scales is not None]),
            None
            if first.zero_points is None
            else np.stack([each.zero_points for each in members if each.zero_points is not None]),
        )
        for source, member in zip(sources, members, strict=True):
            self._used.pop(member.name, None)
            stored = self._tensors.get(source if isinstance(source, str) else source.name)
            if stored is not None:
                stored.release()
        self._used[weight.name] = weight
        return weight

    def _columns(self, weight: Weight) -> Weight:
        values = self._share.part(weight.values, Split.IN)
        return replace(weight, shape=values.shape, values=values)

    def _quantized(self, stored: StoredTensor, wanted: str) -> Weight:
        name, shape = stored.name, stored.values.shape
        if wanted == INT4 and not self._uniform:
            return Weight(name, INT4, shape, *quantization.int4_groups(stored.values))
        if wanted == INT4:
            return Weight(name, INT4, shape, *quantization.int4_symmetric(stored.values, self._round_scales))
        if wanted == FP8:
            return Weight(name, FP8, shape, *quantization.e4m3_per_channel(stored.values, self._round_scales))
        return Weight(name, INT8, shape, *quantization.int8_per_channel(stored.values, self._round_scales))

    def _plain(self, stored: StoredTensor, wanted: str) -> Weight:
        name, shape, plain = stored.name, stored.values.shape, _PLAIN[stored.dtype]
        if wanted == FP16 and plain != FP16:
            halves = quantization.to_float16(stored.values)
            if halves is not None:
                return Weight(name, FP16, shape, halves)
            if self._uniform:
                raise CheckpointError(f"{name}: some of its values are too large for float16; build with bf16")
        elif wanted == BF16 and (plain == FP32 or (self._uniform and plain == FP16)):
            return Weight(name, BF16, shape, quantization.to_bfloat16(stored.values))
        elif wanted == FP32 and self._uniform:
            return Weight(name, FP32, shape, quantization.to_float32(stored.values))
        return Weight(name, plain, shape, stored.values)

    def _round_scales(self, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not self._uniform or self._plain_format == FP32:
            return scales
        if self._plain_format == FP16:
            return scales.astype(np.float16).astype(np.float32)
        return quantization.to_float32(quantization.to_bfloat16(scales))

    def _keep(self, weight: Weight, stored: StoredTensor, taken: StoredTensor) -> Weight:
        """Account for a weight made of what was taken of a tensor, and give that one's pages back if it was copied."""
        weight = replace(weight, values=np.ascontiguousarray(weight.values))
        if np.may_share_memory(weight.values, stored.values):
            self._mapped[weight.name] = stored
        else:
            stored.release()
        self._used[weight.name] = weight
        self._on_weight(taken.values.nbytes)
        return weight


def _nothing_like(part: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """Return zeros of the same shape that take no memory."""
    return None if part is None else np.broadcast_to(part.dtype.type(0), part.shape)
