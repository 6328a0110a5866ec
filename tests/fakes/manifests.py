"""A manifest as small as one can be, for what reads no more of an engine than its limits."""

from __future__ import annotations

from pathlib import Path

from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    Compiler,
    Generation,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    write_manifest,
)

#: Token ids that such an engine knows.
SMALL_VOCAB_SIZE = 400


def write_small_manifest(folder: Path, max_seq_len: int) -> None:
    """Write `engine.json` of an engine that has no files."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture("llama", 1, SMALL_VOCAB_SIZE),
        limits=Limits(1, 64, max_seq_len),
        precision=Precision("fp32", "fp32", "f32"),
        kv_cache=KVLayout(max_seq_len, 1, 1024),
        compiler=Compiler("openvino", "2026"),
        generation=Generation((0,), 0.0, 0, 1.0),
        digests={},
    )
    write_manifest(folder, manifest)
