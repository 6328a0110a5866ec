"""The file of a program: what is written is read again, and what does not hold together is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trident_backend.engine.cuda.program_file import PROGRAM_FILE, read_program, write_program
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
    SamplingLimits,
    StepInput,
    StoredWeight,
    Value,
)
from trident_ensemble.contract.errors import ArtifactError

_KERNEL = Kernel("kernels/a.cubin", "a", "rows.gather", 128, 0, (("out", "*bf16"), ("x", "*bf16")), {"WIDTH": 8})
_ONE = Extent()
_NOTHING = Argument(Kind.NOTHING)


def _program() -> Program:
    arguments = {
        "scale": Argument(Kind.NUMBER, number=0.125),
        "softcap": Argument(Kind.NUMBER, number=1.0),
        "key_factor": Argument(Kind.NUMBER, number=1.0),
        "value_factor": Argument(Kind.NUMBER, number=1.0),
        "sinks": Argument(Kind.WEIGHT, "w"),
        "slopes": _NOTHING,
    }
    grid = (Extent(Count.TOKENS, 16, 3), _ONE, _ONE)
    gather = {"out": Argument(Kind.VALUE, "a"), "x": Argument(Kind.INPUT, StepInput.TOKEN_IDS.value)}
    head = {"out": Argument(Kind.LOGITS), "x": Argument(Kind.VALUE, "b")}
    return Program(
        vocab_size=32,
        max_seq_len=64,
        arena_bytes=1024,
        values=(Value("a", Count.TOKENS, 8, "bf16", 0), Value("b", Count.TOKENS, 8, "bf16", 256)),
        weights=(StoredWeight("w", "fp32", (8,), 256, 32),),
        attention_kinds=(AttentionKind(1, 2, 64, 64, 0, 16, 128, "k", "k", "k", "k", "k"),),
        body=(Launch("k", grid, gather, 1, 32), AttentionCall(0, 0, "a", "a", "a", "b", arguments)),
        head=(Launch("k", (Extent(Count.ROWS), _ONE, _ONE), head),),
        cache_dtype="bf16",
        sampling=SamplingLimits(64, 16, 64, 8, 4, (8, 32)),
        kernels={"k": _KERNEL},
    )


def test_program_file_gives_back_what_was_written(tmp_path: Path) -> None:
    write_program(tmp_path, _program())

    assert read_program(tmp_path) == _program()


def _broken_body(program: Program, index: int, **changes: Any) -> Program:
    body = list(program.body)
    body[index] = replace(body[index], **changes)
    return replace(program, body=tuple(body))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda p: replace(p, values=(p.values[0], p.values[0])), r"program.values\[1\].name"),
        (lambda p: replace(p, weights=(replace(p.weights[0], offset=100),)), r"program.weights\[0\].offset"),
        (lambda p: replace(p, values=(replace(p.values[0], offset=2048), p.values[1])), r"program.values\[0\].offset"),
        (lambda p: replace(p, values=(replace(p.values[0], offset=8), p.values[1])), r"program.values\[0\].offset"),
        (lambda p: _broken_body(p, 0, kernel="x"), r"program.body\[0\].kernel: there is no kernel 'x'"),
        (lambda p: _broken_body(p, 0, arguments={}), r"program.body\[0\].arguments.out: missing"),
        (
            lambda p: _broken_body(p, 0, arguments={**p.body[0].arguments, "y": _NOTHING}),
            r"program.body\[0\].arguments.y: unknown parameter",
        ),
        (
            lambda p: _broken_body(p, 0, arguments={"out": Argument(Kind.VALUE, "z"), "x": _NOTHING}),
            r"program.body\[0\].arguments.out: there is no value 'z'",
        ),
        (
            lambda p: _broken_body(p, 0, arguments={"out": _NOTHING, "x": Argument(Kind.WEIGHT, "a")}),
            r"program.body\[0\].arguments.x: there is no weight 'a'",
        ),
        (
            lambda p: _broken_body(p, 0, arguments={"out": _NOTHING, "x": Argument(Kind.INPUT, "hidden")}),
            r"program.body\[0\].arguments.x: there is no input 'hidden'",
        ),
        (
            lambda p: _broken_body(p, 0, grid=(Extent(Count.ROWS), _ONE, _ONE)),
            r"program.body\[0\].grid\[0\].count: rows",
        ),
        (lambda p: _broken_body(p, 0, grid=(Extent(tile=0), _ONE, _ONE)), r"program.body\[0\].grid\[0\]: tile"),
        (lambda p: _broken_body(p, 0, least=64), r"program.body\[0\].most: 32 is less than least 64"),
        (lambda p: _broken_body(p, 1, layer=1), r"program.body\[1\].layer: 1 comes where layer 0 is due"),
        (lambda p: _broken_body(p, 1, kind=1), r"program.body\[1\].kind: there are 1 kinds"),
        (lambda p: _broken_body(p, 1, key="z"), r"program.body\[1\].key: there is no value 'z'"),
        (lambda p: _broken_body(p, 1, arguments={}), r"program.body\[1\].arguments.key_factor: missing"),
        (
            lambda p: replace(p, attention_kinds=(replace(p.attention_kinds[0], few="x"),)),
            r"program.attention_kinds\[0\].few: there is no kernel 'x'",
        ),
        (
            lambda p: replace(p, head=(replace(p.head[0], grid=(Extent(Count.TOKENS), _ONE, _ONE)),)),
            r"program.head\[0\].grid\[0\].count: tokens",
        ),
    ],
)
def test_program_file_refuses_what_does_not_hold_together(
    tmp_path: Path, change: Callable[[Program], Program], where: str
) -> None:
    with pytest.raises(ArtifactError, match=where):
        write_program(tmp_path, change(_program()))


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("format_version",), 0, "format_version: this Trident reads 1, not 0"),
        (("more",), 0, "program.json.more: unknown field"),
        (("program",), [], "program.json.program: must be an object"),
        (("program", "arena_bytes"), -1, "program.arena_bytes: -1 is not a valid int"),
        (("program", "arena_bytes"), True, "program.arena_bytes: True is not a valid int"),
        (("program", "values"), {}, "program.values: must be a list"),
        (("program", "values", 0, "count"), "all", r"program.values\[0\].count: 'all' is not one of tokens, rows, one"),
        (("program", "values", 0, "more"), 1, r"program.values\[0\].more: unknown field"),
        (("program", "body", 0, "grid"), [], r"program.body\[0\].grid: must have 3 items, not 0"),
        (("program", "body", 0), {}, r"program.body\[0\]: must be an object with the field kernel or layer"),
        (("program", "body", 1, "arguments", "scale", "number"), float("inf"), r"arguments.scale.number: inf"),
        (("program", "kernels", "k", "constants", "WIDTH"), "8", "program.kernels.k.constants.WIDTH: '8' is not a num"),
        (("program", "kernels"), [], "program.kernels: must be an object"),
        (("program", "cache_dtype"), 1, "program.cache_dtype: 1 is not a valid str"),
    ],
)
def test_program_file_refuses_a_field_that_is_not_what_it_should_be(
    tmp_path: Path, path: tuple[str | int, ...], value: Any, where: str
) -> None:
    write_program(tmp_path, _program())
    file = tmp_path / PROGRAM_FILE
    whole = part = json.loads(file.read_text(encoding="utf-8"))
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(whole), encoding="utf-8")

    with pytest.raises(ArtifactError, match=where):
        read_program(tmp_path)


def test_program_file_refuses_a_missing_field_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"program\.json is missing"):
        read_program(tmp_path)
    write_program(tmp_path, _program())
    file = tmp_path / PROGRAM_FILE
    whole = json.loads(file.read_text(encoding="utf-8"))
    del whole["program"]["sampling"]["top_k"]
    file.write_text(json.dumps(whole), encoding="utf-8")

    with pytest.raises(ArtifactError, match=r"program\.sampling\.top_k: missing"):
        read_program(tmp_path)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_program(tmp_path)
