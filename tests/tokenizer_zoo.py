"""Tokenizers of every family that Trident streams, trained on a few lines in many scripts.

Training breaks ties by the order of a hash table, so two trainings differ; what was learnt lies in `trained/`, the same
in every run. `python -m tests.tokenizer_zoo` trains anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    "The trident has three prongs, doesn't it? It's carried by Triton; they're all joined.",
    "Tokens go in,  tokens   come out: \n\n\tone at a time!",
    "naïve café, Straße, Ångström, e\u0301 decomposed, ½ ﬁ ﷺ",
    "東京は日本の首都です。人工知能。 서울은 한국의 수도",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया မင်္ဂလာပါ ကမ္ဘာ",
    "😀 👩‍👩‍👧 🇫🇷 👍🏽😀😀 \U00020000 \ufffd\ufffd a real one",
    "def step(self):\n    return [x ** 2 for x in range(10)]  # <0x41> ▁ </w> ##x\n",
)
SPECIAL = ("<s>", "</s>", "<unk>")
UNKNOWN = SPECIAL[2]
_TRAINED = Path(__file__).parent / "trained"
_ADDED = (
    AddedToken("<think>", special=False),
    AddedToken("<left>", lstrip=True, special=False),
    AddedToken("<right>", rstrip=True, special=False),
    AddedToken("é日", special=False),
    AddedToken("<|late|>", special=True),
    AddedToken("<｜end▁of▁text｜>", special=True),
)
#: Those that decode to nothing where special tokens are skipped.
HIDDEN = (*SPECIAL, *(token.content for token in _ADDED if token.special))


def byte_level_bpe(vocab_size: int = 600) -> Tokenizer:
    """As GPT-2, Llama 3, Qwen; without pre-tokenization, so that tokens cross characters' borders at odd places."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(**_options(vocab_size), initial_alphabet=alphabet)
    return _with_added_tokens(_trained(f"byte_level_bpe_{vocab_size}", tokenizer, trainer))


def llama_2() -> Tokenizer:
    """SentencePiece BPE as Llama 2's tokenizer.json has it: byte fallback, and one space stripped off the front."""
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = _byte_fallback_bpe(decoders.Sequence(stages))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def gemma() -> Tokenizer:
    """The same without a space before the first word."""
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer = _byte_fallback_bpe(decoders.Sequence(stages))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def two_spaces() -> Tokenizer:
    """Strips two spaces off the front, which may be two tokens."""
    stages = [decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    tokenizer = _byte_fallback_bpe(decoders.Sequence(stages))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def metaspace_bpe() -> Tokenizer:
    """Byte fallback before a Metaspace decoder."""
    tokenizer = _byte_fallback_bpe(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def strips_each_piece() -> Tokenizer:
    """Strips a space off the front of every token and of every run of byte tokens."""
    stages = [decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    tokenizer = _byte_fallback_bpe(decoders.Sequence(stages))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def strips_ideographic_spaces() -> Tokenizer:
    """Strips two characters off the front that are spelled by three byte tokens each."""
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip("\u3000", 2, 0)]
    tokenizer = _byte_fallback_bpe(decoders.Sequence(stages))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def strips_replacement_characters() -> Tokenizer:
    """Strips what invalid bytes become, and replaces a character of the text as a whole."""
    stages = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("é", "\ufffd"), decoders.Strip("\ufffd", 3, 0)]
    return _byte_fallback_bpe(decoders.Sequence(stages))


def unigram() -> Tokenizer:
    """As T5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=list(SPECIAL), unk_token=UNKNOWN, show_progress=False
    )
    return _with_added_tokens(_trained("unigram", tokenizer, trainer))


def wordpiece() -> Tokenizer:
    """As BERT, with its clean-up of spaces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_added_tokens(_trained("wordpiece", tokenizer, trainers.WordPieceTrainer(**_options(400))))


def word_end_bpe() -> Tokenizer:
    """As the first GPT: words end in `</w>`."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(**_options(400), end_of_word_suffix="</w>")
    return _with_added_tokens(_trained("word_end_bpe", tokenizer, trainer))


def words() -> Tokenizer:
    """Whole words and no decoder at all."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _with_added_tokens(_trained("words", tokenizer, trainers.WordLevelTrainer(**_options(200))))


def _options(vocab_size: int) -> dict[str, Any]:
    return {"vocab_size": vocab_size, "special_tokens": list(SPECIAL), "show_progress": False}


def _trained(name: str, tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    """Return what is stored under `name`; where nothing is, train `tokenizer` and store it."""
    stored = _TRAINED / f"{name}.json"
    if not stored.exists():
        tokenizer.train_from_iterator(TEXTS, trainer)
        stored.write_text(tokenizer.to_str())
    return Tokenizer.from_file(str(stored))


def _with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens([token for token in _ADDED if not token.special])
    tokenizer.add_special_tokens([token for token in _ADDED if token.special])
    return tokenizer


def _byte_fallback_bpe(decoder: decoders.Decoder) -> Tokenizer:
    learnt = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    # A small alphabet, so that most scripts need byte tokens.
    learnt = _trained("byte_fallback_bpe", learnt, trainers.BpeTrainer(**_options(300), limit_alphabet=70))
    raw = json.loads(learnt.to_str())
    vocabulary = raw["model"]["vocab"]
    for token in [f"<0x{byte:02X}>" for byte in range(256)] + ["▁▁", "\ufffd"]:
        vocabulary.setdefault(token, len(vocabulary))
    raw["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.decoder = decoder
    return _with_added_tokens(tokenizer)


ZOO: dict[str, Callable[[], Tokenizer]] = {
    "byte_level_bpe": byte_level_bpe,
    "byte_level_bytes": lambda: byte_level_bpe(270),
    "llama_2": llama_2,
    "gemma": gemma,
    "two_spaces": two_spaces,
    "metaspace_bpe": metaspace_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "word_end_bpe": word_end_bpe,
    "words": words,
}


#: Decoders with byte fallback that nobody has, but that the format allows.
ODD: dict[str, Callable[[], Tokenizer]] = {
    "strips_each_piece": strips_each_piece,
    "strips_ideographic_spaces": strips_ideographic_spaces,
    "strips_replacement_characters": strips_replacement_characters,
}
BYTE_FALLBACK = ("llama_2", "gemma", "two_spaces", "metaspace_bpe", *ODD)


@cache
def tokenizer_of(family: str) -> Tokenizer:
    """The tokenizer of a family of `ZOO` or `ODD`, made once."""
    return (ZOO | ODD)[family]()


if __name__ == "__main__":
    for file in _TRAINED.glob("*.json"):
        file.unlink()
    for make in (ZOO | ODD).values():
        make()
