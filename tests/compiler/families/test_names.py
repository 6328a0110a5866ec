"""Nothing outside of a family's own module knows its name, its tensors, or the keys of its configuration."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from trident_compiler.families.registry import FAMILIES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "tools/trident_compiler/families"
#: The modules that describe families; the others of the folder are what families are described with.
DESCRIPTIONS = {path for path in FOLDER.glob("*.py") if re.search(r"^\w+ = Family\(", path.read_text(), re.MULTILINE)}
#: GGUF has names of its own for families and their tensors; its room translates them.
OTHERS = sorted(
    path
    for package in ("backend", "ensemble", "postprocessing", "preprocessing", "tools")
    for path in (ROOT / package).glob("trident_*/**/*.py")
    if path not in DESCRIPTIONS and "gguf" not in path.parts and path != FOLDER / "registry.py"
)
TYPES = {model_type for family in FAMILIES for model_type in family.model_types}
#: Types, modules, and the name that the types of one module begin with; `seed` is a word of sampling.
NAMES = (TYPES | {path.stem.partition("_")[0] for path in DESCRIPTIONS}) - {"seed"}
NAMED = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(sorted(NAMES))})(?![a-z])", re.IGNORECASE)
#: Where such a name means another thing: a form of tool calls, a kind of rotary embedding.
OTHER_MEANINGS = {"building/output_markers.py", "checkpoint/rope_kinds.py", "contract/model_card.py"}
OTHER_MEANINGS |= {"tool_calls/call_reader.py", "tool_calls/call_syntax.py", "tool_calls/formats.py"}
#: Keys of config.json that are read for all families in one place or are named to users, and words of Trident's own.
SHARED = {
    "beta_fast", "beta_slow", "full_attention", "mscale_all_dim", "original_max_position_embeddings",
    "rope_parameters", "rope_scaling", "rope_theta", "rope_type",
    "attn_logit_softcapping", "max_position_embeddings", "n_positions", "num_attention_heads", "num_key_value_heads",
    "seq_length", "sliding_window", "use_sliding_window",
    "head_dim", "max_seq_len", "model_type", "num_layers",
}  # fmt: skip


def _code(path: Path) -> ast.Module:
    """A module without docstrings; comments are not in it anyway."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                match node.body:
                    case [ast.Expr(value=ast.Constant() as docstring), *_]:
                        docstring.value = ""
    return tree


def _words(path: Path) -> Iterator[str]:
    """The words in a module's strings that only a name can be: with an underscore or capitals inside."""
    for node in ast.walk(_code(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for word in re.findall(r"[A-Za-z]\w*", node.value):
                if "_" in word or word.lower() != word != word.capitalize():
                    yield word


def test_names_each_family_has_a_module_of_its_own() -> None:
    assert len(DESCRIPTIONS) > 25
    assert len(OTHERS) > 150
    assert {"llama", "gpt_oss", "falcon", "deepseek"} <= {path.stem for path in DESCRIPTIONS}


@pytest.mark.parametrize("package", sorted({path.relative_to(ROOT).parts[1] for path in OTHERS}))
def test_names_no_family_is_named_by_the_rest(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in OTHERS
        if package in path.parts and "/".join(path.parts[-2:]) not in OTHER_MEANINGS
        for match in NAMED.finditer(ast.unparse(_code(path)))
    }
    assert found == set()


def test_names_no_tensor_or_key_of_a_family_is_known_to_the_rest() -> None:
    known = {word for path in DESCRIPTIONS for word in _words(path)} - SHARED
    assert {"q_proj", "lm_head", "c_attn", "num_hidden_layers", "rms_norm_eps", "alibi_bias_max"} <= known
    found = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in OTHERS
        if path.parent != FOLDER
        for word in _words(path)
        if word in known
    }
    assert found == set()
