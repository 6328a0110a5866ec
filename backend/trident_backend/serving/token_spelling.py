"""The output tensors with the bytes of the tokens that log probabilities are of.

Owns where a token stands at the beginning of a text, and the form in which bytes are sent: hexadecimal digits, because
JSON has no bytes and a part of a character is no text; a mark stands before those that the text leaves out. Reads
sequences, never changes one.
"""

from __future__ import annotations

import collections.abc as cabc

import numpy as np

from trident_backend.requests.output_options import OutputOptions
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.responses import Output, ResponseSlice
from trident_ensemble.contract import tensors
from trident_ensemble.contract.tensors import NO_TEXT_MARK, TensorSpec
from trident_ensemble.text.special_tokens import TokenSpeller


class TokenSpelling:
    """Spells the tokens of responses.

    Args:
        speller: knows the bytes of tokens.
    """

    def __init__(self, speller: TokenSpeller) -> None:
        self._speller = speller

    def of_output(self, output: OutputOptions, slices: cabc.Sequence[ResponseSlice]) -> list[Output]:
        """Return the bytes of the output tokens in a response, and of the likeliest ones in their places."""
        rows, tops = [], []
        for sequence, _, start, end in slices:
            first, num_prompt = sequence.num_prompt_tokens + start, sequence.num_prompt_tokens
            num_first = self._num_first(output, sequence, 0 if output.echo else num_prompt, num_prompt + end)
            ids = sequence.token_ids[first : num_prompt + end]
            rows.append(
                [self._digits(output, token_id, first + place < num_first) for place, token_id in enumerate(ids)]
            )
            tops += self._tops(output, sequence.log_probs[start:end], num_first - first)
        own = np.full((len(rows), max(map(len, rows))), b"", np.object_)
        for row, digits in zip(own, rows, strict=True):
            row[: len(digits)] = digits
        return [Output(tensors.OUTPUT_TOKEN_BYTES, own), *_top(tensors.TOP_TOKEN_BYTES, tops, slices[0].sequence)]

    def of_prompt(self, output: OutputOptions, sequence: Sequence) -> list[Output]:
        """Return the bytes of the prompt's tokens, and of the likeliest ones from the second place on."""
        ids = sequence.token_ids[: sequence.num_prompt_tokens]
        num_first = self._num_first(output, sequence, 0, len(ids))
        own = [self._digits(output, token_id, place < num_first) for place, token_id in enumerate(ids)]
        tops = self._tops(output, sequence.prompt_log_probs, num_first - 1)
        return [
            Output(tensors.PROMPT_TOKEN_BYTES, np.array(own, np.object_)),
            *_top(tensors.PROMPT_TOP_TOKEN_BYTES, tops, sequence),
        ]

    def _num_first(self, output: OutputOptions, sequence: Sequence, begin: int, end: int) -> int:
        """Return the index behind the first token of a text that begins at `begin`: what comes before is no text."""
        for index in range(begin, end):
            if self._is_text(output, sequence.token_ids[index]):
                return index + 1
        return end

    def _is_text(self, output: OutputOptions, token_id: int) -> bool:
        is_skipped = output.skip_special_tokens and self._speller.is_special(token_id)
        return not is_skipped and token_id not in output.marker_ids

    def _tops(self, output: OutputOptions, items: cabc.Sequence[TokenLogProbs], num_first: int) -> list[list[bytes]]:
        return [
            [self._digits(output, token_id, place < num_first) for token_id in item.top_ids]
            for place, item in enumerate(items)
        ]

    def _digits(self, output: OutputOptions, token_id: int, begins: bool) -> bytes:
        digits = self._speller.of(token_id, begins=begins).hex().encode()
        return digits if self._is_text(output, token_id) else NO_TEXT_MARK.encode() + digits


def _top(spec: TensorSpec, rows: list[list[bytes]], sequence: Sequence) -> list[Output]:
    num_top = sequence.sampling.num_top_log_probs
    return [Output(spec, np.array(rows, np.object_).reshape(len(rows), num_top))] if num_top else []
