"""What a load asks: drawn lengths, exact texts, files of prompts; and the reading of a metrics page."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.tokenizer_zoo import tokenizer_of
from trident_ensemble.contract.errors import ServerError
from trident_tools.load.distributions import Distribution, parse_distribution
from trident_tools.load.option_values import field, list_of, positive_number, whole_number
from trident_tools.load.output_files import output_file, replace_file
from trident_tools.load.prompts import Prompt, PromptPlan, WrittenPrompt, make_prompts, read_prompts
from trident_tools.load.scrape import difference, parse_page
from trident_tools.load.text_maker import TextMaker, open_tokenizer

DEMO = Path(__file__).parents[3] / "tools" / "demo" / "checkpoint"


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("128", 128, 0),
        ("normal:500:50", 500, 50),
        ("uniform:100:300", 200, np.sqrt((201**2 - 1) / 12)),
        ("lognormal:300:150", 300, 150),
    ],
)
def test_bench_prompts_lengths_are_as_asked(text: str, mean: float, deviation: float) -> None:
    lengths = parse_distribution(text).sample(np.random.default_rng(1), 20000)
    assert lengths.mean() == pytest.approx(mean, rel=0.02)
    assert lengths.std() == pytest.approx(deviation, rel=0.05, abs=1e-9)
    assert str(parse_distribution(text)) == text


def test_bench_prompts_no_length_is_below_one() -> None:
    assert parse_distribution("normal:2:50").sample(np.random.default_rng(1), 1000).min() == 1
    both_ends = parse_distribution("uniform:3:4").sample(np.random.default_rng(1), 100)
    assert set(both_ends.tolist()) == {3, 4}


@pytest.mark.parametrize(
    "text", ["", "0", "1.5", "-3", "nan", "normal:5", "normal:0:1", "normal:5:-1", "uniform:9:3", "gamma:1:2", "a:b:c"]
)
def test_bench_prompts_distributions_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"distribution|must|numbers"):
        parse_distribution(text)


def _tokenizer(name: str) -> Tokenizer:
    return open_tokenizer(str(DEMO)) if name == "demo" else tokenizer_of(name)


@pytest.mark.parametrize("name", ["demo", "byte_level_bpe", "llama_2", "unigram"])
def test_bench_prompts_texts_have_exactly_the_tokens(name: str) -> None:
    """Also for tokenizers that add a beginning of text, and that merge across words."""
    tokenizer, random = _tokenizer(name), np.random.default_rng(7)
    texts = TextMaker(tokenizer)
    prefix = texts.text(random, 32)
    for num_tokens in (48, 64, 200):
        text = texts.text(random, num_tokens, prefix)
        assert text.startswith(prefix)
        assert len(tokenizer.encode(text).ids) == num_tokens


def test_bench_prompts_a_length_that_no_text_has() -> None:
    with pytest.raises(ServerError, match="--tokenizer"):
        TextMaker(_tokenizer("llama_2")).text(np.random.default_rng(1), 0)


def plan(**changes: object) -> PromptPlan:
    lengths = {"input_tokens": Distribution("constant", (20.0,)), "output_tokens": Distribution("constant", (9.0,))}
    return PromptPlan(**{**lengths, "shared_prefix": 0, "written": (), "seed": 5, **changes})  # type: ignore[arg-type]


def _take(plan: PromptPlan, count: int) -> list[Prompt]:
    return list(itertools.islice(make_prompts(plan, TextMaker(_tokenizer("demo"))), count))


def test_bench_prompts_prompts_are_of_the_seed_and_never_repeat() -> None:
    first = _take(plan(), 50)
    assert first == _take(plan(), 50)
    assert first != _take(plan(seed=6), 50)
    assert len({prompt.text for prompt in first}) == 50
    assert {prompt.max_tokens for prompt in first} == {9}


def test_bench_prompts_a_shared_prefix_comes_on_top() -> None:
    texts = [prompt.text for prompt in _take(plan(shared_prefix=64), 20)]
    count = TextMaker(_tokenizer("demo")).count
    assert all(text is not None and count(text) == 84 for text in texts)
    shared = [len(set(letters)) == 1 for letters in zip(*map(str, texts), strict=False)]
    assert shared.index(False) > 64


def test_bench_prompts_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    message = {"role": "user", "content": "Hi"}
    file.write_text('{"text_input": "one", "max_tokens": 3}\n\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    written = read_prompts(str(file))
    assert written == (WrittenPrompt("one", None, 3), WrittenPrompt(None, (message,), None))
    asked = _take(plan(written=written), 3)
    assert asked == [Prompt("one", None, 3), Prompt(None, (message,), 9), Prompt("one", None, 3)]
    text, chat = _take(plan(written=written, shared_prefix=8), 2)
    assert chat.messages is not None
    assert chat.messages[0]["role"] == "system"
    assert text.text == f"{chat.messages[0]['content']}\n\none"


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"text_input": 3}', '{"messages": []}', '{"text_input": "a", "max_tokens": 0}',
             '{"text_input": "a", "messages": [{}]}', '{"text_input": "a", "temperature": 1}'],
)  # fmt: skip
def test_bench_prompts_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"text_input": "good"}}\n{line}\n')
    with pytest.raises(argparse.ArgumentTypeError, match="line 2"):
        read_prompts(str(file))


def test_bench_prompts_values_of_options() -> None:
    assert list_of(whole_number(1))("1,20") == [1, 20]
    assert field("temperature=0.7") == ("temperature", 0.7)
    assert field("tenant=a=b") == ("tenant", "a=b")
    for parse, text in ((whole_number(1), "0"), (whole_number(0), "-1"), (positive_number, "nan"), (field, "x")):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


def test_bench_prompts_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(file, "new" * 100000 + "\ud800")
    assert file.read_text() == "old"
    replace_file(file, "new")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    with pytest.raises(argparse.ArgumentTypeError):
        output_file(str(tmp_path / "missing" / "report.json"))


BEFORE = """\
# TYPE nv_llm_requests_total counter
nv_llm_requests_total{finish_reason="eos",model="core"} 5
nv_llm_requests_total{finish_reason="length",model="core"} 40
# TYPE nv_llm_ttft_seconds histogram
nv_llm_ttft_seconds_bucket{le="0.1"} 1
nv_llm_ttft_seconds_bucket{le="+Inf"} 2
nv_llm_ttft_seconds_sum 3
nv_llm_ttft_seconds_count 2
# TYPE nv_llm_gap_seconds_sum counter
nv_llm_gap_seconds_sum{model="core"} 1.5
# TYPE nv_llm_gap_seconds_count counter
nv_llm_gap_seconds_count{model="core"} 10
# TYPE nv_llm_gap_seconds_bucket counter
nv_llm_gap_seconds_bucket{le="+Inf",model="core"} 10
# TYPE nv_llm_step_time_model gauge
nv_llm_step_time_model{coefficient="base"} 1
# TYPE nv_llm_token_count gauge
nv_llm_token_count 4
# TYPE nv_inference_count counter
nv_inference_count 3
"""


def test_bench_prompts_the_difference_of_two_metrics_pages() -> None:
    after = (
        BEFORE.replace('"eos",model="core"} 5', '"eos",model="core"} 8')
        .replace('"length",model="core"} 40', '"length",model="core"} 2')
        .replace("ttft_seconds_sum 3", "ttft_seconds_sum 7")
        .replace("ttft_seconds_count 2", "ttft_seconds_count 4")
        .replace('{coefficient="base"} 1', '{coefficient="base"} 0.25')
    )
    assert difference(parse_page(BEFORE), parse_page(after)) == {
        "counters": {
            'nv_llm_requests_total{finish_reason="eos",model="core"}': 3,
            'nv_llm_requests_total{finish_reason="length",model="core"}': 2,  # it began anew
        },
        "histograms": {
            "nv_llm_ttft_seconds": {"sum": 4, "count": 2, "mean": 2},
            'nv_llm_gap_seconds{model="core"}': {"sum": 0, "count": 0, "mean": None},
        },
        "gauges": {'nv_llm_step_time_model{coefficient="base"}': 0.25, "nv_llm_token_count": 4},
    }


def test_bench_prompts_words_that_the_tokenizer_does_not_know_are_not_used() -> None:
    """They would all be one token, and every prompt the same."""
    vocabulary = {"[UNK]": 0, **{f"w{number}": number for number in range(1, 40)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    maker = TextMaker(tokenizer)
    ids = tokenizer.encode(maker.text(np.random.default_rng(3), 30)).ids
    assert len(ids) == 30
    assert 0 not in ids
    assert len(set(ids)) > 10
