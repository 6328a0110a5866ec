"""The tokens that end a text, from every file of a checkpoint that names one.

Owns the union: config.json and generation_config.json give ids, tokenizer_config.json and special_tokens_map.json the
token's text. Checkpoints disagree about it (a base model's end left in one file, the end of a turn in another), and a
text that runs on past its end is worse than one that ends at either. Never renders a chat template: whether its end of
a turn is among these is found where templates are rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from trident_compiler.checkpoint.generation_defaults import token_ids
from trident_compiler.checkpoint.json_config import JsonConfig

_ID_KEY, _TEXT_KEY = "eos_token_id", "eos_token"


@dataclass(frozen=True)
class EndToken:
    """A token that ends the text.

    Args:
        token_id: below the network's vocabulary.
        text: as the tokenizer spells it; empty where it has no such id.
        named_by: the files that name it.
    """

    token_id: int
    text: str
    named_by: tuple[str, ...]


@dataclass(frozen=True)
class EndOfText:
    """All ends of text that a checkpoint names.

    Args:
        tokens: the ends that are tokens, by ascending id.
        unknown: the others, which are no tokens, as `FILE: eos_token = TEXT`.
    """

    tokens: tuple[EndToken, ...]
    unknown: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids, ascending."""
        return tuple(token.token_id for token in self.tokens)


def read_end_of_text(
    with_ids: Sequence[JsonConfig], with_texts: Sequence[JsonConfig], tokenizer: Tokenizer, vocab_size: int
) -> EndOfText:
    """Return every token that one of the files says ends the text.

    Args:
        with_ids: files with `eos_token_id`, a number or a list of them.
        with_texts: files with `eos_token`, a text or an object that has it as `content`.
        tokenizer: tells ids from texts.
        vocab_size: the network's.

    Raises:
        CheckpointError: a value is neither, or its token is beyond the network's vocabulary; names file and key.
    """
    named_by: dict[int, list[str]] = {}
    unknown: list[str] = []
    for config in with_ids:
        for token_id in _ids(config, vocab_size):
            named_by.setdefault(token_id, []).append(config.where)
    for config in with_texts:
        text = _text(config)
        if text is None:
            continue
        known: int | None = tokenizer.token_to_id(text)
        if known is None:
            unknown.append(f"{config.where}: {_TEXT_KEY} = {text!r}")
        elif known >= vocab_size:
            problem = f"has id {known} in tokenizer.json, but the network's vocabulary (config.json: vocab_size)"
            raise config.refuse(_TEXT_KEY, f"{problem} ends at {vocab_size - 1}, so that it could never be generated")
        else:
            named_by.setdefault(known, []).append(config.where)
    tokens = (
        EndToken(token_id, tokenizer.id_to_token(token_id) or "", tuple(dict.fromkeys(files)))
        for token_id, files in sorted(named_by.items())
    )
    return EndOfText(tuple(tokens), tuple(unknown))


def _ids(config: JsonConfig, vocab_size: int) -> tuple[int, ...]:
    value = config.values.get(_ID_KEY)
    ends = [] if value is None else value if isinstance(value, list) else [value]
    ids = token_ids(ends, vocab_size)
    if ids is None:
        raise config.refuse(_ID_KEY, f"must be token ids from 0 to {vocab_size - 1}, or null for none")
    return ids


def _text(config: JsonConfig) -> str | None:
    value = config.values.get(_TEXT_KEY)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise config.refuse(_TEXT_KEY, 'must be a text, an object {"content": text}, or null for none')
    return value or None
