"""Mistral's tokenizers, from the package of their authors, and what its own code makes of ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mistral_common
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models

from trident_ensemble.text.anchors import BYTE_LEVEL_ALPHABET


@dataclass(frozen=True)
class RealTokenizer:
    """A tokenizer in use, as `tokenizers` has it (decoding alone), and its reference.

    Args:
        encode: text to ids, by the reference.
        decode: ids to text, by the reference; with special tokens or without.
        plain_ids: ids that the reference decodes as `tokenizers` does in any order.
    """

    tokenizer: Tokenizer
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int], bool], str]
    plain_ids: list[int]


@cache
def mistral_tekken() -> RealTokenizer:
    """Byte-level, 131072 tokens, a thousand of them special."""
    reference = Tekkenizer.from_file(_mistral_file("tekken_240911.json"))
    spelled = {byte: character for character, byte in BYTE_LEVEL_ALPHABET.items()}
    num_special = reference.num_special_tokens
    special = [reference.id_to_piece(token_id) for token_id in range(num_special)]
    pieces = [reference.id_to_byte_piece(token_id) for token_id in range(num_special, reference.n_words)]
    names = [*special, *("".join(spelled[byte] for byte in piece) for piece in pieces)]
    tokenizer = Tokenizer(models.BPE({name: token_id for token_id, name in enumerate(names)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)

    def decode(token_ids: list[int], skip: bool) -> str:
        return reference.decode(token_ids, SpecialTokenPolicy("ignore" if skip else "keep"))

    return RealTokenizer(
        tokenizer, lambda text: reference.encode(text, bos=True, eos=True), decode, list(range(len(names)))
    )


@cache
def mistral_sentencepiece() -> RealTokenizer:
    """BPE with byte fallback, 32768 tokens, 750 of them for control. The reference has no text for these."""
    reference = SentencePieceProcessor(model_file=str(_mistral_file("mistral_instruct_tokenizer_240323.model.v3")))
    ids = range(reference.get_piece_size())
    pieces = [reference.id_to_piece(token_id) for token_id in ids]
    special = [piece for token_id, piece in zip(ids, pieces, strict=True) if reference.is_control(token_id)]
    tokenizer = Tokenizer(
        models.BPE({piece: token_id for token_id, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(stages)
    tokenizer.add_special_tokens([reference.id_to_piece(reference.unk_id()), *special])

    def decode(token_ids: list[int], skip: bool) -> str:
        assert skip
        text: str = reference.decode(token_ids)
        return text

    def encode(text: str) -> list[int]:
        token_ids: list[int] = reference.encode(text, add_bos=True, add_eos=True)
        return token_ids

    plain = [token_id for token_id in ids if not reference.is_byte(token_id) and token_id != reference.unk_id()]
    return RealTokenizer(tokenizer, encode, decode, plain)


def _mistral_file(name: str) -> Path:
    return Path(mistral_common.__file__).parent / "data" / name


REAL: dict[str, Callable[[], RealTokenizer]] = {
    "mistral_tekken": mistral_tekken,
    "mistral_sentencepiece": mistral_sentencepiece,
}
