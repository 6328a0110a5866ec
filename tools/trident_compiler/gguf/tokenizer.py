"""The tokenizer that a file holds, as the files of a checkpoint.

Owns what the vocabulary of a file means: byte-level, cut by a named pattern, or SentencePiece's with a score for each
piece. Never renders the template that comes with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.gguf.pre_tokenizers import PRE_TOKENIZERS
from trident_ensemble.contract.errors import CheckpointError

_TOKENS, _TYPES, _SCORES, _MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges"))
_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TEMPLATE = "tokenizer.chat_template"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
#: transformers' names of the tokens, and the file's.
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
#: Keys of tokens that end an answer, the end of text first.
_ENDS = ("eos", "eot", "eom")


def token_id(metadata: JsonConfig, name: str) -> int | None:
    """Return the id of a token such as `bos`; None where the file has none.

    Raises:
        CheckpointError: the vocabulary has no such token.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    if metadata.values.get(key) is None:
        return None
    return metadata.integer(key, least=0, most=len(_tokens(metadata)) - 1)


def end_ids(metadata: JsonConfig) -> list[int]:
    """Return the tokens that end an answer: of the text, and of a turn where that is another."""
    found = [token_id(metadata, name) for name in _ENDS]
    return list(dict.fromkeys(known for known in found if known is not None))


def _tokens(metadata: JsonConfig) -> list[str]:
    tokens = metadata.values.get(_TOKENS)
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError(f"{metadata.where}: {_TOKENS}: the file must have a vocabulary")
    return tokens


def _numbers(metadata: JsonConfig, key: str, length: int) -> Sequence[float]:
    numbers = metadata.values.get(key)
    if not isinstance(numbers, np.ndarray) or len(numbers) != length:
        raise CheckpointError(f"{metadata.where}: {key}: must say a number of each of the {length} tokens")
    listed: list[float] = numbers.tolist()
    return listed


def read_tokenizer(metadata: JsonConfig) -> Tokenizer:
    """Return the tokenizer.

    Raises:
        CheckpointError: a kind of vocabulary, or a way to cut texts, that is not known; or a malformed one.
    """
    kind = metadata.values.get(_MODEL)
    if kind not in _KINDS:
        raise metadata.refuse(_MODEL, f"not converted; {', '.join(_KINDS)} are. {_OTHERWISE}")
    tokens = _tokens(metadata)
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(tokens):
        vocabulary.setdefault(token, number)
    try:
        tokenizer, adds_bos = _KINDS[kind](metadata, tokens, vocabulary)
        _add_tokens(tokenizer, metadata, tokens, vocabulary)
    except CheckpointError:
        raise
    except Exception as error:  # the binding raises bare Exception
        raise CheckpointError(f"{metadata.where}: the vocabulary cannot be read: {error}. {_OTHERWISE}") from None
    tokenizer.post_processor = _post_processor(metadata, tokens, adds_bos)
    return tokenizer


_OTHERWISE = "Give the tokenizer's folder, of the model that the file was made of, with --tokenizer"


def _byte_level(metadata: JsonConfig, _: Sequence[str], vocabulary: dict[str, int]) -> tuple[Tokenizer, bool]:
    name = metadata.values.get(_PRE)
    if name not in PRE_TOKENIZERS:
        raise metadata.refuse(_PRE, f"this way to cut texts is not known. {_OTHERWISE}")
    cut = PRE_TOKENIZERS[name]
    listed = metadata.values.get(_MERGES)
    merges = [tuple(merge.split(" ")) for merge in listed] if isinstance(listed, list) else []
    if not merges or not all(len(merge) == 2 for merge in merges):
        raise CheckpointError(f"{metadata.where}: {_MERGES}: must be pairs of tokens, a space between")
    # Some files list merges of what is no token; such a pair is never merged.
    known = [pair for pair in merges if pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocabulary, known, ignore_merges=cut.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cut.adds_bos


def _sentencepiece(metadata: JsonConfig, tokens: Sequence[str], vocabulary: dict[str, int]) -> tuple[Tokenizer, bool]:
    scores = _numbers(metadata, _SCORES, len(tokens))
    types = _numbers(metadata, _TYPES, len(tokens))
    unknown = token_id(metadata, "unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(tokens, scores, types, vocabulary),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", default=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer, True


def _merges(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[float], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Return every pair that makes a token, best first; the tokens' scores are their order, and ties go by their id."""
    pieces = [number for number, kind in enumerate(types) if kind == _NORMAL and len(tokens[number]) > 1]
    pieces.sort(key=lambda number: (-scores[number], number))
    return [
        (token[:cut], token[cut:])
        for token in (tokens[number] for number in pieces)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _add_tokens(
    tokenizer: Tokenizer, metadata: JsonConfig, tokens: Sequence[str], vocabulary: Mapping[str, int]
) -> None:
    """Keep whole what the file marks as whole: control tokens are special, those that users defined are not."""
    if metadata.values.get(_TYPES) is None:
        kinds: Sequence[float] = [_NORMAL] * len(tokens)
    else:
        kinds = _numbers(metadata, _TYPES, len(tokens))
    special = {
        known for known in (token_id(metadata, name) for name in (*_SPECIAL.values(), *_ENDS)) if known is not None
    }
    whole = [
        AddedToken(token, normalized=False, special=kind == _CONTROL or number in special)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if token and vocabulary[token] == number and (kind in {_CONTROL, _USER_DEFINED} or number in special)
    ]
    # Both at once: each call builds its search tree anew.
    tokenizer.add_special_tokens([token for token in whole if token.special])
    tokenizer.add_tokens([token for token in whole if not token.special])


def _post_processor(metadata: JsonConfig, tokens: Sequence[str], adds_bos: bool) -> Any:
    """Return what puts the begin-of-text token before texts, and the end behind, where the file says so."""
    begin, end = token_id(metadata, "bos"), token_id(metadata, "eos")
    before = begin if metadata.flag("tokenizer.ggml.add_bos_token", default=adds_bos) else None
    behind = end if metadata.flag("tokenizer.ggml.add_eos_token") else None
    named = [(tokens[number], number) for number in (before, behind) if number is not None]
    if not named:
        return processors.ByteLevel(trim_offsets=False)
    first = [] if before is None else [tokens[before]]
    last = [] if behind is None else [tokens[behind]]
    return processors.TemplateProcessing(
        single=[*first, "$A", *last], pair=[*first, "$A", *last, *first, "$B:1", *last], special_tokens=named
    )


def write_tokenizer(metadata: JsonConfig, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates.

    Raises:
        CheckpointError: the vocabulary cannot be converted.
    """
    read_tokenizer(metadata).save(str(folder / "tokenizer.json"))
    tokens = _tokens(metadata)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in _SPECIAL.items():
        number = token_id(metadata, key)
        if number is not None:
            config[name] = tokens[number]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    write_templates(metadata, folder)


def write_templates(metadata: JsonConfig, folder: Path) -> None:
    """Write the chat templates that a file has, the default one and named ones.

    Raises:
        CheckpointError: one is no text, or its name is none of a file.
    """
    for key, template in metadata.values.items():
        if key != _TEMPLATE and not key.startswith(f"{_TEMPLATE}."):
            continue
        name = key.removeprefix(_TEMPLATE).removeprefix(".")
        if not isinstance(template, str):
            raise metadata.refuse(key, "must be a text")
        if name and not _TEMPLATE_NAME.fullmatch(name):
            raise metadata.refuse(key, f"{name!r} is no name of a template; letters, digits, _ and - are")
        path = folder / (f"additional_chat_templates/{name}.jinja" if name else "chat_template.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
