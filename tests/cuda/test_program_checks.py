"""A program that does not hold together is refused before anything is uploaded, whichever of its fields is another."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cuda.small_programs import Small, build
from trident_backend.engine.cuda.manifest_check import check_manifest
from trident_backend.engine.cuda.program_checks import check_program
from trident_backend.engine.cuda.program_file import PROGRAM_FILE, read_program
from trident_backend.engine.cuda.sampling_launches import operations_of
from trident_backend.engine.cuda.step_memory import sizes_of
from trident_backend.engine.gpu.attention_plan import AttentionPlanner
from trident_backend.engine.gpu.block_pool import block_bytes_of
from trident_backend.engine.gpu.program import Argument, AttentionCall, Count, Kernel, Kind, Launch, Program
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import Manifest, read_manifest

TINY = Small(max_num_seqs=2, max_num_tokens=4, max_seq_len=32, num_blocks=12)
BENT: list[Any] = [None, [], {}, "other", True, -1, 0, 0.5, 2**31, 2**62, 10**400, 1e300, "value", "count", "rows"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "1"
    build(folder, TINY)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return json.loads((folder / PROGRAM_FILE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


def leaves(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every part of a JSON text."""
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


def use(program: Program, manifest: Manifest) -> None:
    """Check a program, and compute from it what the host computes before it uploads anything."""
    check_program(program)
    check_manifest(manifest, program)
    bounds = []
    for kind in program.attention_kinds:
        planner = AttentionPlanner(kind, 64)
        bounds.append(planner.bounds(TINY.max_num_tokens))
        assert kind.few_rows // kind.group
    assert sizes_of(program, bounds, 8)["logits"] > 0
    assert block_bytes_of(program, TINY.block_size) > 0
    assert max(each.num_bytes(program.sampling) for each in operations_of(program).values()) > 0


def test_program_checks_any_field_that_is_another_is_refused_by_name_or_does_no_harm(
    whole: Any, manifest: Manifest, tmp_path: Path
) -> None:
    """Nothing but the refusal is raised."""
    small = copy.deepcopy(whole)
    paths = list(leaves(small))
    num_refused = 0

    @settings(max_examples=800, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(path=st.sampled_from(paths), value=st.sampled_from(BENT))
    def bend(path: tuple[str | int, ...], value: Any) -> None:
        nonlocal num_refused
        part = small
        for key in path[:-1]:
            part = part[key]
        kept, part[path[-1]] = part[path[-1]], value
        try:
            with patch.object(Path, "read_text", lambda *_, **__: json.dumps(small)):
                use(read_program(tmp_path), manifest)
        except ArtifactError:
            num_refused += 1
        finally:
            part[path[-1]] = kept

    bend()
    assert num_refused > 500


def kernel_of(program: Program, name: str, **changes: Any) -> Program:
    return replace(program, kernels={**program.kernels, name: replace(program.kernels[name], **changes)})


def constant_of(program: Program, name: str, **changes: Any) -> Program:
    return kernel_of(program, name, constants={**program.kernels[name].constants, **changes})


def kind_of(program: Program, **changes: Any) -> Program:
    first, *others = program.attention_kinds
    return replace(program, attention_kinds=(replace(first, **changes), *others))


def sampling_of(program: Program, **changes: Any) -> Program:
    return replace(program, sampling=replace(program.sampling, **changes))


def argument_of(program: Program, name: str, argument: Argument) -> Program:
    """Change an argument of the first attention if it has one of this name, of the first product otherwise."""
    found: list[Launch | AttentionCall] = list(program.body)
    attention = next(i for i, each in enumerate(found) if isinstance(each, AttentionCall))
    index = attention if name in found[attention].arguments else 1
    found[index] = replace(found[index], arguments={**found[index].arguments, name: argument})
    return replace(program, body=tuple(found))


def without_kernel(program: Program, name: str) -> Program:
    return replace(program, kernels={other: kernel for other, kernel in program.kernels.items() if other != name})


def parameters_of(kernel: Kernel, **types: str) -> tuple[tuple[str, str], ...]:
    return tuple(({**dict(kernel.parameters), **types}).items())


REFUSED: list[tuple[str, Any]] = [
    ("cache_dtype: 'i8' is no type", lambda p: replace(p, cache_dtype="i8")),
    (r"values\[0\].dtype: 'other'", lambda p: replace(p, values=(replace(p.values[0], dtype="other"), *p.values[1:]))),
    (r"values\[0\]: 4 rows end", lambda p: replace(p, values=(replace(p.values[0], width=2**20), *p.values[1:]))),
    (r"weights\[0\].num_bytes", lambda p: replace(p, weights=(replace(p.weights[0], num_bytes=4), *p.weights[1:]))),
    ("attention_kinds: there is none", lambda p: replace(p, attention_kinds=())),
    (r"attention_kinds\[0\].group: 0", lambda p: kind_of(p, group=0)),
    (r"attention_kinds\[0\].num_kv_heads: 0", lambda p: kind_of(p, num_kv_heads=0)),
    (r"attention_kinds\[0\].few_rows: 1", lambda p: kind_of(p, few_rows=1)),
    (r"attention_kinds\[0\].many_rows: 2", lambda p: kind_of(p, many_rows=2)),
    (r"head_parts", lambda p: kind_of(p, head_parts=3)),
    ("constants.PARTS: 1", lambda p: kind_of(p, head_parts=2)),
    (r"attention_kinds\[0\].head_parts: 0", lambda p: kind_of(p, head_parts=0)),
    ("cache.write.constants.KV_HEADS: 2", lambda p: kind_of(p, num_kv_heads=3)),
    ("constants.GROUP: 2", lambda p: kind_of(p, group=1)),
    ("cache.write.constants.DIM: 8", lambda p: kind_of(p, head_dim=9)),
    ("cache.write.constants.DIM_V: 4", lambda p: kind_of(p, v_head_dim=5)),
    ("attend.few.0.constants.ROWS: 4", lambda p: kind_of(p, few_rows=5)),
    ("attend.many.0.constants.ROWS: 16", lambda p: kind_of(p, many_rows=17)),
    (r"cache.write.parameters.key_cache: \*fp32", lambda p: replace(p, cache_dtype="fp16")),
    ("cache.write.constants.BLOCK: 0", lambda p: constant_of(p, "cache.write", BLOCK=0)),
    ("attend.few.0.constants.WINDOW", lambda p: kind_of(p, window=3)),
    ("attend.few.0.function: attention.attend", lambda p: kind_of(p, write="attend.few.0")),
    ("merge.few.parameters: no host has a 'more'", lambda p: kernel_of(p, "merge.few", parameters=(("more", "*i8"),))),
    ("num_threads: 0", lambda p: kernel_of(p, "embed", num_threads=0)),
    ("shared_bytes: 2097152", lambda p: kernel_of(p, "embed", shared_bytes=2**21)),
    (
        "cache.copy.parameters: pool cannot be 'i32'",
        lambda p: kernel_of(p, "cache.copy", parameters=parameters_of(p.kernels["cache.copy"], pool="i32")),
    ),
    (
        "arguments.scale: a number of tokens",
        lambda p: argument_of(p, "scale", Argument(Kind.COUNT, Count.TOKENS.value)),
    ),
    ("arguments.sinks: number", lambda p: argument_of(p, "sinks", Argument(Kind.NUMBER, number=1))),
    ("arguments.num_rows: value", lambda p: argument_of(p, "num_rows", Argument(Kind.VALUE, "q"))),
    ("arguments.num_rows.number: 0.5", lambda p: argument_of(p, "num_rows", Argument(Kind.NUMBER, number=0.5))),
    ("sampling.top_k", lambda p: sampling_of(p, top_k=())),
    ("sampling.top_k", lambda p: sampling_of(p, top_k=(5, 5))),
    ("sampling.max_chosen: 0", lambda p: sampling_of(p, max_chosen=0)),
    ("find_ties.constants.COUNT", lambda p: sampling_of(p, num_ties=1)),
    ("argmax.constants.VOCAB: 37", lambda p: replace(p, vocab_size=36)),
    ("kernels: there is no argmax", lambda p: without_kernel(p, "argmax")),
    ("read.constants.BLOCK", lambda p: constant_of(p, "read", BLOCK=0)),
    ("max_seq_len: the manifest says 32, the program has 31", lambda p: replace(p, max_seq_len=31)),
]


@pytest.mark.parametrize(("text", "change"), REFUSED)
def test_program_checks_what_does_not_fit_is_refused_by_its_field(
    text: str, change: Any, folder: Path, manifest: Manifest
) -> None:
    with pytest.raises(ArtifactError, match=text):
        use(change(read_program(folder)), manifest)


def test_program_checks_have_nothing_against_a_program_that_holds_together(folder: Path, manifest: Manifest) -> None:
    use(read_program(folder), manifest)
