"""A program small enough to be written by hand, for tests of the host: two layers, one of them with a window.

Owns the engine's folder, the kernels that are made up for it, and the network as plain numpy computes it, a sequence
at once, which knows of no blocks, tiles and launches. Never uses the compiler's lowering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.cuda.calls import Call
from tests.tensorrt.double.cubins import Cubin
from trident_backend.engine.cuda.program_file import write_program
from trident_backend.engine.gpu.program import (
    Argument,
    AttentionCall,
    AttentionKind,
    Count,
    Extent,
    Kernel,
    Kind,
    Launch,
    Program,
    StoredWeight,
    Value,
)
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.sampling_kernels import sampling_specs
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    Compiler,
    Generation,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    sm_target,
    write_manifest,
)

Floats = npt.NDArray[np.float32]

CAPABILITY = (8, 9)
VOCAB, WIDTH, KV_HEADS, GROUP, DIM, DIM_V = 37, 24, 2, 2, 8, 4
HEADS = KV_HEADS * GROUP
WINDOWS = (0, 11)
FEW_ROWS, MANY_ROWS, KEYS = 4, 16, 16
SCALE = 0.4
#: Above so many tokens, products are launched in another way, and again above all that is captured.
MANY_TOKENS, MOST_TOKENS = 12, 512
_TOKENS, _ROWS, _ONE = Extent(Count.TOKENS), Extent(Count.ROWS), Extent()
_FLOATS = "*fp32"


@dataclass(frozen=True)
class Small:
    """The sizes of an engine."""

    max_num_seqs: int = 5
    max_num_tokens: int = 40
    max_seq_len: int = 600
    block_size: int = 8
    num_blocks: int = 200

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return len(WINDOWS) * self.block_size * KV_HEADS * (DIM + DIM_V) * 4


SMALL = Small()


def embed(call: Call) -> None:
    """Gather rows of a table."""
    ids = call.read("ids", (call.grid[0],))
    call.store("out", call.gather("table", ids * WIDTH, WIDTH))


def project(call: Call) -> None:
    """Multiply rows, and add to what is there if ADD is set; a program has TILE rows."""
    num_rows, constants = call.number("num_rows"), call.constants
    assert call.grid == (-(-num_rows // int(constants["TILE"])), 1, 1)
    out = (
        call.read("x", (num_rows, int(constants["K"])))
        @ call.read("weight", (int(constants["N"]), int(constants["K"]))).T
    )
    call.store("out", out + call.read("out", out.shape) if constants["ADD"] else out)


def pick(call: Call) -> None:
    """Gather rows of a value."""
    rows = call.read("rows", (call.grid[0],))
    call.store("out", call.gather("x", rows * WIDTH, WIDTH))


#: The twins of the kernels that are made up.
TWINS: Mapping[str, Callable[[Call], None]] = {"small.embed": embed, "small.project": project, "small.pick": pick}


def weights() -> dict[str, Floats]:
    """Return all weights, by name."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, int]] = {"table": (VOCAB, WIDTH)}
    for layer in range(len(WINDOWS)):
        shapes |= {
            f"query.{layer}": (HEADS * DIM, WIDTH),
            f"key.{layer}": (KV_HEADS * DIM, WIDTH),
            f"value.{layer}": (KV_HEADS * DIM_V, WIDTH),
            f"out.{layer}": (WIDTH, HEADS * DIM_V),
        }
    return {
        name: (rng.standard_normal(shape) / np.sqrt(shape[1] / 3)).astype(np.float32) for name, shape in shapes.items()
    }


def logits_of(tokens: list[int]) -> Floats:
    """Return the logits after each token of a sequence, computed at once."""
    found = {name: array.astype(np.float64) for name, array in weights().items()}
    hidden = found["table"][tokens]
    length = len(tokens)
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    for layer, window in enumerate(WINDOWS):
        query = (hidden @ found[f"query.{layer}"].T).reshape(length, KV_HEADS, GROUP, DIM)
        key = (hidden @ found[f"key.{layer}"].T).reshape(length, KV_HEADS, DIM)
        value = (hidden @ found[f"value.{layer}"].T).reshape(length, KV_HEADS, DIM_V)
        scores = np.einsum("thgd,shd->hgts", query, key) * SCALE
        scores[..., (distance < 0) | ((distance >= window) if window else False)] = -np.inf
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hgts,shd->thgd", weight / weight.sum(-1, keepdims=True), value)
        hidden = hidden + attended.reshape(length, -1) @ found[f"out.{layer}"].T
    return (hidden @ found["table"].T).astype(np.float32)


def build(folder: Path, small: Small = SMALL) -> Manifest:
    """Write an engine's folder."""
    folder.mkdir(parents=True)
    specs = _specs(small)
    sampling, limits = sampling_specs(VOCAB, small.max_num_tokens)
    kernels = _write_kernels({**specs, **sampling}, folder)
    stored, content = _stored()
    (folder / layout.WEIGHTS_FILE).write_bytes(content)
    values, arena_bytes = _values(small)
    program = Program(
        vocab_size=VOCAB,
        max_seq_len=small.max_seq_len,
        arena_bytes=arena_bytes,
        values=values,
        weights=stored,
        attention_kinds=tuple(_kind(window) for window in WINDOWS),
        body=_body(),
        head=_head(),
        cache_dtype="fp32",
        sampling=limits,
        kernels=kernels,
    )
    write_program(folder, program)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture("small", len(WINDOWS), VOCAB),
        limits=Limits(small.max_num_seqs, small.max_num_tokens, small.max_seq_len),
        precision=Precision("fp32", "fp32", "f32"),
        kv_cache=KVLayout(small.block_size, small.num_blocks, small.block_bytes),
        compiler=Compiler("cuda", "3.7.1", sm_target(CAPABILITY)),
        generation=Generation((0,), 1.0, 0, 1.0),
        digests=digest_folder(folder),
    )
    write_manifest(folder, manifest)
    return manifest


def _write_kernels(specs: Mapping[str, KernelSpec], folder: Path) -> dict[str, Kernel]:
    """Write a double of a cubin for each kernel; two have more shared memory than a block has unasked."""
    kernels = {}
    for number, (name, spec) in enumerate(specs.items()):
        file, entry = f"{number}.cubin", spec.function.partition(".")[2]
        shared_bytes = 70000 if spec.function == "attention.attend" else 2048
        kernels[name] = Kernel(file, entry, spec.function, 128, shared_bytes, spec.types, dict(spec.constants))
        cubin = Cubin(CAPABILITY, entry, spec.function, 128, shared_bytes, spec.types, dict(spec.constants))
        (folder / file).write_bytes(cubin.save())
    return kernels


def _specs(small: Small) -> dict[str, KernelSpec]:
    heads = {"KV_HEADS": KV_HEADS, "GROUP": GROUP, "PARTS": 1, "DIM_V": DIM_V, "DIM_V_P": 16}
    dims = {"DIM": DIM, "DIM_P": 16, "BLOCK": small.block_size, "QUANT": False}
    cache = {"key_cache": _FLOATS, "value_cache": _FLOATS, "key_factor": "fp32", "value_factor": "fp32"}
    partials = {"out": _FLOATS, "partial_out": _FLOATS, "partial_stats": _FLOATS}
    write = {**cache, "keys": _FLOATS, "values": _FLOATS, "places": "*i32"}
    write_constants = {**dims, "KV_HEADS": KV_HEADS, "DIM_V": DIM_V, "DIM_V_P": 16, "HEADS_P": 2}
    attend = {
        **cache,
        **partials,
        **dict.fromkeys(("queries", "sinks", "slopes"), _FLOATS),
        **dict.fromkeys(("tables", "items"), "*i32"),
        **dict.fromkeys(("scale", "softcap"), "fp32"),
        "window": "i32",
    }
    plain = {**heads, **dims, "KEYS": KEYS, "CAP": False, "SINKS": False, "ALIBI": False}
    merge = {**partials, "merges": "*i32"}
    copy = {"pool": "*i32", "geometry": "*i64", "copies": "*i32", "num_copies": "i32"}
    specs = {
        "cache.write": KernelSpec.of("attention.write_cache", write, write_constants),
        "merge.few": KernelSpec.of("attention.merge", merge, {**heads, "ROWS": FEW_ROWS}),
        "merge.many": KernelSpec.of("attention.merge", merge, {**heads, "ROWS": MANY_ROWS}),
        "cache.copy": KernelSpec.of("attention.copy_blocks", copy, {"CHUNK": 64}),
        "embed": KernelSpec.of("small.embed", {"out": _FLOATS, "ids": "*i32", "table": _FLOATS}, {}),
        "pick": KernelSpec.of("small.pick", {"out": _FLOATS, "rows": "*i32", "x": _FLOATS}, {}),
    }
    for window in WINDOWS:
        for name, rows in (("few", FEW_ROWS), ("many", MANY_ROWS)):
            constants = {**plain, "ROWS": rows, "WINDOW": window > 0}
            specs[f"attend.{name}.{window}"] = KernelSpec.of("attention.attend", attend, constants)
    types = {"out": _FLOATS, "x": _FLOATS, "weight": _FLOATS, "num_rows": "i32"}
    for name, (n, k, add) in _PRODUCTS.items():
        for tile in (4, 16, 32):
            constants = {"N": n, "K": k, "ADD": add, "TILE": tile}
            specs[f"{name}.{tile}"] = KernelSpec.of("small.project", types, constants)
    return specs


#: Columns of the result and of what is multiplied, and whether it is added to what is there.
_PRODUCTS = {
    "queries": (HEADS * DIM, WIDTH, False),
    "keys": (KV_HEADS * DIM, WIDTH, False),
    "values": (KV_HEADS * DIM_V, WIDTH, False),
    "outs": (WIDTH, HEADS * DIM_V, True),
    "logits": (VOCAB, WIDTH, False),
}


def _kind(window: int) -> AttentionKind:
    return AttentionKind(
        num_kv_heads=KV_HEADS,
        group=GROUP,
        head_dim=DIM,
        v_head_dim=DIM_V,
        window=window,
        few_rows=FEW_ROWS,
        many_rows=MANY_ROWS,
        write="cache.write",
        few=f"attend.few.{window}",
        many=f"attend.many.{window}",
        merge_few="merge.few",
        merge_many="merge.many",
    )


def _stored() -> tuple[tuple[StoredWeight, ...], bytes]:
    found, content = [], b""
    for name, array in weights().items():
        found.append(StoredWeight(name, "fp32", array.shape, len(content), array.nbytes))
        content += array.tobytes().ljust(-(-array.nbytes // 256) * 256, b"\0")
    return tuple(found), content


def _values(small: Small) -> tuple[tuple[Value, ...], int]:
    widths = {"hidden": WIDTH, "q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * DIM_V, "attended": HEADS * DIM_V}
    values, end = [], 0
    for name, width in widths.items():
        values.append(Value(name, Count.TOKENS, width, "fp32", end))
        end += -(-small.max_num_tokens * width * 4 // 256) * 256
    # Queries are not needed any more when rows are picked.
    values.append(Value("picked", Count.ROWS, WIDTH, "fp32", values[1].offset))
    return tuple(values), end


def _value(name: str) -> Argument:
    return Argument(Kind.VALUE, name)


def _weight(name: str) -> Argument:
    return Argument(Kind.WEIGHT, name)


def _products(name: str, x: str, weight: str, out: Argument, count: Count) -> list[Launch]:
    arguments = {"out": out, "x": _value(x), "weight": _weight(weight), "num_rows": Argument(Kind.COUNT, count.value)}
    return [
        Launch(f"{name}.4", (Extent(count, 4), _ONE, _ONE), arguments, most=MANY_TOKENS),
        Launch(f"{name}.16", (Extent(count, 16), _ONE, _ONE), arguments, least=MANY_TOKENS + 1, most=MOST_TOKENS),
        Launch(f"{name}.32", (Extent(count, 32), _ONE, _ONE), arguments, least=MOST_TOKENS + 1),
    ]


def _body() -> tuple[Launch | AttentionCall, ...]:
    arguments = {"out": _value("hidden"), "ids": Argument(Kind.INPUT, "token_ids"), "table": _weight("table")}
    body: list[Launch | AttentionCall] = [Launch("embed", (_TOKENS, _ONE, _ONE), arguments)]
    numbers = {"scale": SCALE, "softcap": 0.0, "key_factor": 1.0, "value_factor": 1.0}
    layer_arguments = {name: Argument(Kind.NUMBER, number=number) for name, number in numbers.items()}
    layer_arguments |= dict.fromkeys(("sinks", "slopes"), Argument(Kind.NOTHING))
    for layer in range(len(WINDOWS)):
        body += _products("queries", "hidden", f"query.{layer}", _value("q"), Count.TOKENS)
        body += _products("keys", "hidden", f"key.{layer}", _value("k"), Count.TOKENS)
        body += _products("values", "hidden", f"value.{layer}", _value("v"), Count.TOKENS)
        body.append(AttentionCall(layer, layer, "q", "k", "v", "attended", layer_arguments))
        body += _products("outs", "attended", f"out.{layer}", _value("hidden"), Count.TOKENS)
    return tuple(body)


def _head() -> tuple[Launch, ...]:
    arguments = {"out": _value("picked"), "rows": Argument(Kind.INPUT, "logit_rows"), "x": _value("hidden")}
    return (
        Launch("pick", (_ROWS, _ONE, _ONE), arguments),
        *_products("logits", "picked", "table", Argument(Kind.LOGITS), Count.ROWS),
    )
