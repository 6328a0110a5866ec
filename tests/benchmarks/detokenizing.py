"""`make bench BENCH=detokenizing`: what a chunk's text costs postprocessing, and for how long nothing comes.

For tokenizers of each kind, and two in use, texts in English and in many scripts are streamed in chunks of one and of
eight tokens: the core's choice of context and postprocessing's decoding, in microseconds of one processor; every figure
is the median of rounds taken in turn. Then how many chunks of one token in a row, at most, bring no text.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from tests.mistral_tokenizers import REAL
from tests.scripts import SCRIPTS
from tests.tokenizer_zoo import TEXTS, tokenizer_of
from trident_ensemble.text.anchors import anchor_table, context_ids
from trident_ensemble.text.detokenizer import make_detokenizer
from trident_tools.load.option_values import whole_number

FAMILIES = ("byte_level_bpe", "llama_2", "metaspace_bpe", "unigram")
CHUNKS = (1, 8)


class Streamer:
    """AnsweringThread one text, over and over.

    Args:
        tokenizer: whose.
        token_ids: the text's.
    """

    def __init__(self, tokenizer: Tokenizer, token_ids: list[int]) -> None:
        self.token_ids = token_ids
        self._detokenizer = make_detokenizer(tokenizer)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            tokenizer.save(str(path))
            self._table = anchor_table(path, tokenizer.get_vocab_size()).tobytes()

    def stream(self, chunk: int) -> list[str]:
        """Return the texts of all chunks of so many tokens."""
        ids, texts = self.token_ids, []
        for sent in range(0, len(ids), chunk):
            context = context_ids(self._table, ids, sent, skip_special_tokens=True)
            new_ids = ids[sent : sent + chunk]
            texts.append(self._detokenizer.text(context, new_ids, is_last=sent + chunk >= len(ids)))
        return texts

    def microseconds(self, chunk: int) -> float:
        """Return what one chunk costs."""
        begin = time.thread_time()
        texts = self.stream(chunk)
        return (time.thread_time() - begin) / len(texts) * 1e6


def main() -> None:
    """Measure all tokenizers in turn."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=detokenizing", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=21)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    streamers = {}
    for kind, text in {"English": TEXTS[0] * 20, "all scripts": "\n".join(SCRIPTS.values())}.items():
        for family in FAMILIES:
            tokenizer = tokenizer_of(family)
            streamers[f"{family}, {kind}"] = Streamer(tokenizer, tokenizer.encode(text).ids)
        for name, make in REAL.items():
            streamers[f"{name}, {kind}"] = Streamer(make().tokenizer, make().encode(text))
    rounds = [
        {(name, chunk): streamer.microseconds(chunk) for name, streamer in streamers.items() for chunk in CHUNKS}
        for _ in range(args.rounds)
    ]
    figures = {
        name: {str(chunk): median(costs[name, chunk] for costs in rounds) for chunk in CHUNKS} for name in streamers
    }
    table = Table("tokenizer", *(f"us a chunk of {chunk}" for chunk in CHUNKS), "longest silence, in tokens")
    for name, streamer in streamers.items():
        costs = [f"{figures[name][str(chunk)]:.1f}" for chunk in CHUNKS]
        table.add_row(name, *costs, str(longest_silence(streamer.stream(1))))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


def longest_silence(texts: list[str]) -> int:
    """Return the most chunks in a row that bring nothing."""
    longest = current = 0
    for text in texts:
        current = 0 if text else current + 1
        longest = max(longest, current)
    return longest


if __name__ == "__main__":
    main()
