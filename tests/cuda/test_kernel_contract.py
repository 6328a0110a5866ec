"""What the host and an engine's machine code agree on, beside the number that counts its changes.

Where a test here must change, engines that are built do not fit the new host: `FORMAT_VERSION` changes with it.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.cuda.program_file import FORMAT_VERSION
from trident_backend.engine.gpu.attention_plan import AttentionPlanner
from trident_backend.engine.gpu.program import AttentionKind, StepInput
from trident_compiler.cuda.attention_kernels import attention_specs, copy_blocks_spec
from trident_compiler.cuda.sampling_kernels import sampling_specs

THIS_VERSION = 1
PARAMETERS = {
    "attention.write_cache": (
        "key_cache: *bf16, key_factor: fp32, keys: *bf16, places: *i32, value_cache: *bf16, value_factor: fp32, "
        "values: *bf16"
    ),
    "attention.attend": (
        "items: *i32, key_cache: *bf16, key_factor: fp32, out: *bf16, partial_out: *fp32, partial_stats: *fp32, "
        "queries: *bf16, scale: fp32, sinks: *fp32, slopes: *fp32, softcap: fp32, tables: *i32, "
        "value_cache: *bf16, value_factor: fp32, window: i32"
    ),
    "attention.merge": "merges: *i32, out: *bf16, partial_out: *fp32, partial_stats: *fp32",
    "attention.copy_blocks": "copies: *i32, geometry: *i64, num_copies: i32, pool: *i32",
    "sampling.argmax": "ids: *i32, logits: *fp32, rows: *i32, values: *fp32",
    "sampling.chunk_exp_sums": "floors: *fp32, inverses: *fp32, logits: *fp32, maxima: *fp32, rows: *i32, sums: *fp32",
    "sampling.find_ties": "ids: *i32, logits: *fp32, rows: *i32, values: *fp32",
    "sampling.read": "logits: *fp32, num_pairs: i32, pairs: *i32, values: *fp32",
    "sampling.write": "changed: *fp32, num_pairs: i32, pairs: *i32, values: *fp32",
    "sampling.copy_rows": "changed: *fp32, logits: *fp32, rows: *i32",
    "sampling.penalise": (
        "changed: *fp32, logits: *fp32, repetitions: *fp32, rows: *i32, table: *fp32, table_rows: *i32"
    ),
    "sampling.apply_token_bitmask": "changed: *fp32, logits: *fp32, masks: *i32, rows: *i32",
    "sampling.select": "count: i32, key_ids: *i32, keys: *i32, logits: *fp32, rows: *i32",
    "sampling.rank": "count: i32, ids: *i32, key_ids: *i32, keys: *i32, values: *fp32",
}


def test_kernel_contract_parameters_are_those_of_the_format() -> None:
    attention = attention_specs(
        num_kv_heads=1,
        group=2,
        head_dim=64,
        v_head_dim=64,
        block_size=32,
        compute="bf16",
        cache="bf16",
        capability=(9, 0),
    )
    sampling, _ = sampling_specs(1000, 64)
    specs = [attention.write, attention.few, attention.merge_few, copy_blocks_spec(), *sampling.values()]
    found = {spec.function: ", ".join(f"{name}: {dtype}" for name, dtype in spec.types) for spec in specs}
    assert (FORMAT_VERSION, found) == (THIS_VERSION, PARAMETERS)
    inputs = {"token_ids", "position_ids", "logit_rows"}
    assert (FORMAT_VERSION, {each.value for each in StepInput}) == (THIS_VERSION, inputs)


def test_kernel_contract_columns_of_items_and_merges_are_those_of_the_format() -> None:
    """A sequence with one token at position 1999, and a prompt of 100 whose table begins at 63."""
    kind = AttentionKind(1, 2, 64, 64, 0, 16, 128, "w", "f", "m", "g", "n")
    past_lens, begins, tables = (np.array(each, np.int32) for each in ([1999, 40], [0, 1, 101], [0, 63]))
    plan = AttentionPlanner(kind, num_programs=8).plan(past_lens, begins, tables)
    # Begin of the table, first token, tokens, position, first key, end of keys, partial, whether it is the first piece.
    few = [
        [0, 0, 1, 1999, 0, 512, 0, 1],
        [0, 0, 1, 1999, 512, 1024, 1, 0],
        [0, 0, 1, 1999, 1024, 1536, 2, 0],
        [0, 0, 1, 1999, 1536, 2000, 3, 0],
    ]
    many = [[63, 65, 36, 104, 0, 140, -1, 1], [63, 1, 64, 40, 0, 104, -1, 1]]
    # First token, tokens, first partial, partials.
    merges = [[0, 1, 0, 4]]
    found = FORMAT_VERSION, plan.few.tolist(), plan.many.tolist(), plan.merges_few.tolist()
    assert found == (THIS_VERSION, few, many, merges)
