"""64 streams at once through four postprocessing instances: each in order, each exact, however often it sends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.decoding import decode
from tests.e2e.build import build
from tests.e2e.clients import Answer, ask_grpc
from tests.e2e.server import serve
from tests.tokenizer_zoo import tokenizer_of

NUM_STREAMS = 64
INTERVALS_MS = (0, 5, 50, 1000)


@pytest.mark.parametrize("family", ["byte_level_bpe", "llama_2"])
def test_streams_joined_text_equals_the_decoding_of_all_ids(family: str, tmp_path: Path) -> None:
    """`llama_2` is of the sentencepiece kind: leading spaces, and bytes for what its vocabulary lacks."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", tokenizer=tokenizer_of(family))
    repository = build(checkpoint, tmp_path / "repository", "--postprocessing-instances", "4")

    with serve(repository, tmp_path / "log") as server:

        def ask(seed: int) -> Answer:
            text = ["Hello 🙂 world", "你好，世界", "naïve café", "Привет 👩‍👩‍👧"][seed % 4]
            return ask_grpc(
                server.grpc,
                text_input=text,
                max_tokens=64,
                stream=True,
                temperature=1.5,
                seed=seed,
                ignore_eos=True,
                stream_interval_ms=INTERVALS_MS[seed // 4 % 4],
            )

        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            answers = list(pool.map(ask, range(NUM_STREAMS)))

    for answer in answers:
        assert len(answer.output_ids) == 64
        assert answer.num_finals == 1
        assert answer.text == decode(family, answer.output_ids)
    everything = "".join(answer.text for answer in answers)
    if family == "byte_level_bpe":
        assert any(ord(character) > 0x1F000 for character in everything), "some emoji came through"
        assert any(0x4E00 <= ord(character) < 0xA000 for character in everything), "some CJK came through"
    num_chunks = [0] * len(INTERVALS_MS)
    for seed, answer in enumerate(answers):
        num_chunks[seed // 4 % 4] += answer.num_chunks
    assert num_chunks[-1] >= NUM_STREAMS / 2, "they were streams"
    assert num_chunks[-1] < num_chunks[0] / 2, "and sent as often as they were asked to"
