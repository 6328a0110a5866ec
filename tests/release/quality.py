"""The quality of an engine: how well it foretells a text, and what it answers when it always takes the likeliest token.

Owns how both are measured. Never compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from tests.e2e.build import build
from tests.e2e.clients import ask_grpc
from tests.e2e.server import serve
from tests.perplexity import WINDOW, perplexity
from tests.release.figures import PROMPTS, TEXT, Quality
from trident_backend.engine.factory import load_engine
from trident_ensemble.contract import layout

MAX_TOKENS = 32
#: Windows of the text that are foretold; a model with longer tokens has fewer.
_MOST_WINDOWS = 4


@dataclass(frozen=True)
class Case:
    """One engine that every release is measured with.

    Args:
        name: ends with the kind of its weights.
        model: a checkpoint's folder, or a GGUF file.
        options: of the build.
    """

    name: str
    model: Path
    options: tuple[str, ...]


def cases(models: Mapping[str, Path]) -> list[Case]:
    """Return the engines of some models, by their names."""
    kinds = {"fp32": ("--precision", "fp32"), "int8": ("--precision", "fp32", "--weights", "int8")}
    return [Case(f"{name} {kind}", model, words) for name, model in models.items() for kind, words in kinds.items()]


def measure(case: Case, work: Path) -> Quality:
    """Build an engine, measure it, and serve it for its answers."""
    repository = build(case.model, work / case.name.replace(" ", "-"), *case.options, "--max-num-seqs", "8")
    version = layout.newest_version(repository / layout.CORE)
    tokenizer = Tokenizer.from_file(str(version / layout.TOKENIZER_FOLDER / layout.TOKENIZER_FILE))
    text = TEXT.read_text(encoding="utf-8")
    engine, _ = load_engine(version)
    try:
        window = min(WINDOW, engine.spec.max_seq_len)
        ids = tokenizer.encode(text, add_special_tokens=False).ids[: _MOST_WINDOWS * window]
        found = perplexity(engine, ids)
    finally:
        engine.close()
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    with serve(repository, work / "quality.log") as server:
        answers = [
            ask_grpc(server.grpc, text_input=prompt, max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True).output_ids
            for prompt in prompts
        ]
    return Quality(found, len(ids), answers)
