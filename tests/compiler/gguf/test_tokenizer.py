"""The tokenizers of GGUF files, against those that they were made of."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from tests.checkpoints import make_checkpoint, tiny_tokenizer
from tests.gguf_files import add_vocabulary, finish, write_llama
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.gguf.gguf_file import open_gguf
from trident_compiler.gguf.importer import import_gguf
from trident_compiler.gguf.pre_tokenizers import PRE_TOKENIZERS
from trident_compiler.gguf.tokenizer import end_ids, read_tokenizer, write_tokenizer
from trident_ensemble.contract.errors import CheckpointError

TEXTS = (
    "The trident has three prongs, doesn't it?  Two spaces.\n\n  Indented\ttab",
    "1234 + 5678 = 6912, in 2026",
    "naïve café, Straße, Привет мир, 東京は日本の首都です, 😀",
    " leading and trailing ",
    "def step(self):\n    return [x ** 2 for x in range(10)]",
    "before<|end|>after <|user|> there",
)


def metadata(path: Path, *, pre: str = "gpt-2", **ids: int) -> JsonConfig:
    """Of a file with the vocabulary of `tiny_tokenizer`."""
    writer = gguf.GGUFWriter(path, "llama")
    add_vocabulary(writer, json.loads(tiny_tokenizer().backend_tokenizer.to_str()), pre)
    for name, number in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    finish(writer)
    return open_gguf(path).metadata


def test_tokenizer_a_byte_level_vocabulary_gives_the_ids_that_it_gave(tmp_path: Path) -> None:
    found, expected = read_tokenizer(metadata(tmp_path / "file.gguf")), tiny_tokenizer().backend_tokenizer
    for text in TEXTS:
        ids = expected.encode(text).ids
        assert found.encode(text).ids == ids, text
        assert found.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_tokenizer_texts_are_cut_as_transformers_cuts_them_for_the_same_name(pre: str) -> None:
    """Its importer of these files, which needs PyTorch, has some of the names."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (  # noqa: PLC0415
        GGUF_PRE_TOKENIZER_SPLITS,
    )

    expected = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), "isolated")
    (pattern,) = PRE_TOKENIZERS[pre].patterns
    found = pre_tokenizers.Split(Regex(pattern), "isolated")
    for text in (*TEXTS, "I'LL don't WeIRDCase ÀÉî 12345 !!\r\n\r\n"):
        assert found.pre_tokenize_str(text) == expected.pre_tokenize_str(text)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_tokenizer_every_way_to_cut_texts_loses_nothing(pre: str, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(metadata(tmp_path / "file.gguf", pre=pre))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_digits_are_cut_one_by_one_where_the_name_says_so(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(metadata(tmp_path / "file.gguf", pre="smollm"))
    cut = tokenizer.pre_tokenizer.pre_tokenize_str("year 2026's")
    assert [piece for piece, _ in cut] == ["year", "Ġ", "2", "0", "2", "6", "'s"]


def test_tokenizer_an_unknown_way_to_cut_texts_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre = 'unheard-of': .* --tokenizer"):
        read_tokenizer(metadata(tmp_path / "file.gguf", pre="unheard-of"))


def test_tokenizer_an_unknown_kind_of_vocabulary_is_refused_with_the_way_out(tmp_path: Path) -> None:
    config = metadata(tmp_path / "file.gguf")
    changed = JsonConfig({**config.values, "tokenizer.ggml.model": "rwkv"}, config.where)
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.model = 'rwkv': .* --tokenizer"):
        read_tokenizer(changed)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tokenizer.ggml.tokens", None, "must have a vocabulary"),
        ("tokenizer.ggml.tokens", [], "must have a vocabulary"),
        ("tokenizer.ggml.merges", None, "must be pairs of tokens"),
        ("tokenizer.ggml.merges", ["a b c"], "must be pairs of tokens"),
        ("tokenizer.ggml.token_type", None, ""),
        ("tokenizer.ggml.eos_token_id", 4000000000, "must be at most"),
        ("tokenizer.ggml.eos_token_id", "two", "must be a whole number"),
        ("tokenizer.ggml.add_bos_token", 7, "must be true or false"),
        ("tokenizer.chat_template", 7, "must be a text"),
        ("tokenizer.chat_template.../up", "text", "no name of a template"),
    ],
)
def test_tokenizer_what_is_malformed_is_refused_by_key(key: str, value: Any, said: str, tmp_path: Path) -> None:
    config = metadata(tmp_path / "file.gguf")
    changed = JsonConfig({**config.values, key: value}, config.where)
    if not said:
        read_tokenizer(changed)
        return
    with pytest.raises(CheckpointError, match=said) as refused:
        write_tokenizer(changed, tmp_path)
    assert key in str(refused.value)


def test_tokenizer_begin_and_end_are_added_where_the_file_says_so(tmp_path: Path) -> None:
    config = metadata(tmp_path / "file.gguf", bos=1, eos=0)
    plain = read_tokenizer(config).encode("one").ids
    asked = JsonConfig(
        {**config.values, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, config.where
    )
    assert read_tokenizer(asked).encode("one").ids == [1, *plain, 0]
    assert read_tokenizer(asked).encode("one", add_special_tokens=False).ids == plain


def test_tokenizer_the_end_of_a_turn_is_an_end_too(tmp_path: Path) -> None:
    assert end_ids(metadata(tmp_path / "file.gguf", eos=0, eot=3)) == [0, 3]


def test_tokenizer_transformers_reads_the_files(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "llama")
    import_gguf(write_llama(folder, tmp_path / "file.gguf"), tmp_path / "imported")
    found, expected = AutoTokenizer.from_pretrained(tmp_path / "imported"), AutoTokenizer.from_pretrained(folder)
    assert (found.eos_token, found.eos_token_id) == (expected.eos_token, 0)
    messages = [{"role": "user", "content": "Hello, 2026!"}]
    rendered = expected.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == rendered
    assert found(rendered)["input_ids"] == expected(rendered)["input_ids"]


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    """A vocabulary that SentencePiece itself trained, with bytes for what no piece spells."""
    sentences, model = (list(TEXTS) * 4 + ["three prongs and a trident", "it is three"] * 9), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, split_digits=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["<|user|>"], minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(pieces: sentencepiece.SentencePieceProcessor, path: Path, **flags: bool) -> JsonConfig:
    writer = gguf.GGUFWriter(path, "llama")
    numbers = range(pieces.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(number) for number in numbers])
    writer.add_token_scores([pieces.get_score(number) for number in numbers])
    kinds = []
    for number in numbers:
        kind = 2 if pieces.is_unknown(number) else 3 if pieces.is_control(number) else 1
        kind = 6 if pieces.is_byte(number) else kind
        kinds.append(4 if pieces.id_to_piece(number) == "<|user|>" else kind)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, flag in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    finish(writer)
    return open_gguf(path).metadata


def test_tokenizer_a_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(
    pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    tokenizer = read_tokenizer(sentencepiece_metadata(pieces, tmp_path / "file.gguf"))
    for text in TEXTS:
        if "<|user|>" in text:
            continue  # a piece that users defined begins a text anew
        ids = pieces.encode(text)
        assert tokenizer.encode(text).ids == [1, *ids], text
        assert tokenizer.decode(ids) == text


def test_tokenizer_a_sentencepiece_vocabulary_without_a_space_before_texts(
    pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    config = sentencepiece_metadata(pieces, tmp_path / "file.gguf", add_space_prefix=False, add_bos_token=False)
    tokenizer = read_tokenizer(config)
    assert tokenizer.encode(" three prongs").ids == pieces.encode("three prongs")
    assert tokenizer.encode("x<|user|>x").tokens == ["x", "<|user|>", "x"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_another_folder_gives_the_tokenizer_and_the_file_its_template(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "llama")
    path = write_llama(folder, tmp_path / "file.gguf")
    (folder / "chat_template.jinja").unlink()
    import_gguf(path, tmp_path / "imported", tokenizer=folder)
    taken = Tokenizer.from_file(str(tmp_path / "imported" / "tokenizer.json"))
    assert taken.to_str() == Tokenizer.from_file(str(folder / "tokenizer.json")).to_str()
    assert "<|assistant|>" in (tmp_path / "imported" / "chat_template.jinja").read_text()


def test_tokenizer_a_file_without_a_vocabulary_takes_that_of_a_folder(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "llama")
    path = write_llama(folder, tmp_path / "file.gguf", tokenizer=False)
    with pytest.raises(CheckpointError, match="--tokenizer"):
        import_gguf(path, tmp_path / "without")
    import_gguf(path, tmp_path / "imported", tokenizer=folder)
    assert (tmp_path / "imported" / "chat_template.jinja").is_file()
