"""Token ids are those of the checkpoint's own tokenizer and chat template; what cannot be tokenized is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.checkpoints import edit_json
from tests.fakes.manifests import SMALL_VOCAB_SIZE, write_small_manifest
from tests.preprocessing.engines import make_engine_folder
from tests.tokenizer_zoo import TEXTS, tokenizer_of
from trident_ensemble.contract.errors import ArtifactError, ContextLengthError, RequestError
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.prompt_tokenizer import PromptTokenizer, load_tokenizer

MESSAGES = [
    {"role": "user", "content": "What is 東京?"},
    {"role": "assistant", "content": "A city 😀"},
    {"role": "user", "content": "Thanks"},
]


@pytest.fixture(params=["byte_level_bpe", "llama_2", "unigram"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def prompts(family: str, tmp_path: Path) -> PromptTokenizer:
    return load_tokenizer(make_engine_folder(tmp_path, family, max_seq_len=512))


def test_prompt_tokenizer_prompts_equal_the_tokenizers(family: str, prompts: PromptTokenizer) -> None:
    for text in TEXTS:
        assert prompts.encode(PromptRequest(text_input=text.encode())) == tokenizer_of(family).encode(text).ids
    if family == "llama_2":
        assert prompts.encode(PromptRequest(text_input=b"a"))[0] == 0, "the beginning of text that the tokenizer adds"


def test_prompt_tokenizer_messages_equal_the_template(prompts: PromptTokenizer, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    expected = reference.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert prompts.encode(PromptRequest(messages=json.dumps(MESSAGES).encode())) == expected
    assert prompts.encode(PromptRequest(messages=json.dumps(MESSAGES, ensure_ascii=False).encode())) == expected


def test_prompt_tokenizer_exactly_one_is_needed(prompts: PromptTokenizer) -> None:
    with pytest.raises(RequestError, match=r"^text_input: is missing; send text_input, or messages"):
        prompts.encode(PromptRequest())
    with pytest.raises(RequestError, match=r"^text_input: is given together with messages"):
        prompts.encode(PromptRequest(text_input=b"a", messages=b"[]"))


def test_prompt_tokenizer_ids_are_taken_as_they_are(prompts: PromptTokenizer) -> None:
    ids = list(range(SMALL_VOCAB_SIZE))
    assert prompts.encode(PromptRequest(prompt_token_ids=ids)) == ids
    longest = [3] * 511
    assert prompts.encode(PromptRequest(prompt_token_ids=longest)) == longest
    cut = PromptRequest(prompt_token_ids=ids, truncate_prompt_tokens=4)
    assert prompts.encode(cut) == ids[-4:]
    right = PromptRequest(
        prompt_token_ids=longest * 9, truncate_prompt_tokens=-1, truncation_side=b"right", max_tokens=0
    )
    assert prompts.encode(right) == longest


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt_token_ids": []}, "prompt_token_ids: must hold at least one id"),
        ({"prompt_token_ids": [1, -1]}, "prompt_token_ids: every id must be from 0 to "),
        (
            {"prompt_token_ids": [SMALL_VOCAB_SIZE]},
            f"prompt_token_ids: every id must be from 0 to {SMALL_VOCAB_SIZE - 1}",
        ),
        ({"prompt_token_ids": [1] * 512}, "prompt_token_ids: a prompt of 512 tokens is too long"),
        ({"text_input": b"a"}, "text_input: is given together with prompt_token_ids; send one"),
        ({"messages": b"[]"}, "messages: is given together with prompt_token_ids; send one"),
        (
            {"add_special_tokens": False},
            "add_special_tokens: only goes with text_input; prompt_token_ids is taken as it",
        ),
        ({"tools": b"[]"}, "tools: only goes with messages; prompt_token_ids is taken as it is"),
        ({"truncate_prompt_tokens": -1}, "max_tokens: is missing"),
    ],
)
def test_prompt_tokenizer_ids_that_cannot_be_the_prompt(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    prompts = load_tokenizer(make_engine_folder(tmp_path, "llama_2", max_seq_len=512))
    with pytest.raises(RequestError, match=f"^{problem}"):
        prompts.encode(PromptRequest(**{"prompt_token_ids": [1], **fields}))


def test_prompt_tokenizer_bad_text(prompts: PromptTokenizer) -> None:
    with pytest.raises(RequestError, match=r"^text_input: is not valid UTF-8: invalid start byte at byte 2"):
        prompts.encode(PromptRequest(text_input=b"ab\xff"))
    with pytest.raises(RequestError, match=r"^messages: is not valid UTF-8"):
        prompts.encode(PromptRequest(messages=b'[{"role": "user", "content": "\xe4"}]'))


def test_prompt_tokenizer_an_empty_prompt_is_the_beginning_of_a_text_where_there_is_one(
    family: str, prompts: PromptTokenizer
) -> None:
    if beginning := tokenizer_of(family).encode("").ids:
        assert prompts.encode(PromptRequest(text_input=b"")) == beginning
    else:
        problem = r"^text_input: has no tokens .* adds no token to an empty text; send at least one character"
        with pytest.raises(RequestError, match=problem):
            prompts.encode(PromptRequest(text_input=b""))
    assert (family == "llama_2") == bool(beginning)


def test_prompt_tokenizer_a_prompt_too_long_is_refused_by_the_clients_name(
    family: str, prompts: PromptTokenizer
) -> None:
    """Exactly where the engine has room for no token of output."""
    text = "a b " * 600
    num_tokens = 1
    while len(tokenizer_of(family).encode(text[:num_tokens]).ids) < 512:
        num_tokens += 1
    assert len(prompts.encode(PromptRequest(text_input=text[: num_tokens - 1].encode()))) == 511
    with pytest.raises(
        ContextLengthError, match=r"^text_input: a prompt of 512 tokens is too long: .* max_seq_len is 512"
    ):
        prompts.encode(PromptRequest(text_input=text[:num_tokens].encode()))
    messages = json.dumps([{"role": "user", "content": text}]).encode()
    with pytest.raises(ContextLengthError, match=r"^messages: a prompt of \d+ tokens is too long"):
        prompts.encode(PromptRequest(messages=messages))


def test_prompt_tokenizer_a_giant_prompt_is_refused_before_it_is_tokenized(prompts: PromptTokenizer) -> None:
    limit = prompts.max_text_bytes
    with pytest.raises(RequestError, match=r"^text_input: a prompt of (more than )?\d+ tokens is too long"):
        prompts.encode(PromptRequest(text_input=b"a" * limit))
    with pytest.raises(RequestError, match=f"^text_input: {limit + 1} bytes are more .* at most {limit};"):
        prompts.encode(PromptRequest(text_input=b"a" * (limit + 1)))
    with pytest.raises(RequestError, match=rf"^messages: \d+ bytes are more .* at most {limit};"):
        prompts.encode(PromptRequest(messages=json.dumps([{"role": "user", "content": "a" * limit}]).encode()))
    with pytest.raises(RequestError, match=r"^messages: \d+ bytes are more"):
        prompts.encode(PromptRequest(messages=b" " * 10_000_000))


def test_prompt_tokenizer_every_prompt_that_fits_in_tokens_fits_in_bytes(family: str, prompts: PromptTokenizer) -> None:
    vocabulary = tokenizer_of(family).get_vocab()
    longest = max(vocabulary, key=len)
    text = tokenizer_of(family).decode([vocabulary[longest]] * 64)
    assert len(text.encode()) <= prompts.max_text_bytes


def test_prompt_tokenizer_half_a_surrogate_pair(prompts: PromptTokenizer) -> None:
    with pytest.raises(RequestError, match=r"^messages: half a surrogate pair"):
        prompts.encode(PromptRequest(messages=rb'[{"role": "user", "content": "\ud800"}]'))


def test_prompt_tokenizer_what_the_template_refuses(prompts: PromptTokenizer) -> None:
    with pytest.raises(RequestError, match=r"^messages: the checkpoint's chat template refuses them: no role system"):
        prompts.encode(PromptRequest(messages=b'[{"role": "system", "content": "a"}]'))


@pytest.mark.parametrize("template", ["{{ messages[5].content }}", "{{ messages + 1 }}", "{{ 1 // 0 }}", "{% if %}"])
def test_prompt_tokenizer_a_template_that_breaks(template: str, tmp_path: Path) -> None:
    prompts = load_tokenizer(make_engine_folder(tmp_path, "byte_level_bpe", chat_template=template))
    with pytest.raises(RequestError, match=r"^messages: the checkpoint's chat template refuses them"):
        prompts.encode(PromptRequest(messages=b'[{"role": "user", "content": "a"}]'))


def test_prompt_tokenizer_a_template_cannot_leave_its_sandbox(tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    prompts = load_tokenizer(make_engine_folder(tmp_path, "byte_level_bpe", chat_template=template))
    with pytest.raises(RequestError, match=r"^messages: the checkpoint's chat template refuses them"):
        prompts.encode(PromptRequest(messages=b'[{"role": "user", "content": "a"}]'))


def test_prompt_tokenizer_without_a_template(tmp_path: Path) -> None:
    prompts = load_tokenizer(make_engine_folder(tmp_path, "byte_level_bpe", chat_template=None))
    with pytest.raises(RequestError, match=r"^messages: the served checkpoint has no chat template; send text_input"):
        prompts.encode(PromptRequest(messages=b'[{"role": "user", "content": "a"}]'))


def test_prompt_tokenizer_damaged_engine_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"engine\.json is missing"):
        load_tokenizer(tmp_path)
    write_small_manifest(tmp_path, 8)
    edit_json(tmp_path / "engine.json", limits={"max_num_seqs": 1, "max_num_tokens": 1, "max_seq_len": "many"})
    with pytest.raises(ArtifactError, match=r"engine\.limits\.max_seq_len: 'many' is not a valid int"):
        load_tokenizer(tmp_path)
    write_small_manifest(tmp_path, 8)
    with pytest.raises(ArtifactError, match="tokenizer is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ArtifactError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_prompt_tokenizer_code_of_the_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = make_engine_folder(tmp_path, "byte_level_bpe") / "tokenizer"
    witness = tmp_path / "ran"
    (folder / "custom.py").write_text(f"open({str(witness)!r}, 'w')\nclass Custom: pass\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Custom", "auto_map": {"AutoTokenizer": ["custom.Custom", "custom.Custom"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="trust_remote_code"):
        load_tokenizer(tmp_path)
    assert not witness.exists()


def test_prompt_tokenizer_json_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    """Six times the longest prompt, for escapes; but no more than 8 MiB, or that prompt, whichever is more."""
    for max_seq_len, limit in ((64, None), (100_000, 1 << 23), (400_000, None)):
        prompts = load_tokenizer(make_engine_folder(tmp_path / str(max_seq_len), "llama_2", max_seq_len=max_seq_len))
        longest = prompts.max_text_bytes
        expected = min(6 * longest, max(longest, 1 << 23)) + (1 << 16)
        assert limit is None or expected == limit + (1 << 16)
        with pytest.raises(RequestError, match=rf"^messages: {expected + 1} bytes are more .* at most {expected};"):
            prompts.encode(PromptRequest(messages=b" " * (expected + 1)))
