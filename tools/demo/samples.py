"""Documents and conversations, packed into batches.

Owns the order in which documents are read and the rows that they fill. Never trains.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from demo.conversations import Conversations
from demo.documents import read_documents
from demo.tokenizer import BEGIN, END, PAD, token_ids


@dataclass(frozen=True)
class Batch:
    """Rows of samples which do not see one another: tokens, positions within the sample, and who may look at whom."""

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor


class Samples:
    """Packs documents and conversations into batches."""

    def __init__(self, tokenizer: Tokenizer, conversations: Conversations, seed: int) -> None:
        self.tokenizer = tokenizer
        self.conversations = conversations
        self.rng = random.Random(seed)  # noqa: S311 (it must be reproducible, not secret)
        self.ids = token_ids(tokenizer)
        pages, docstrings = read_documents()
        self.pages = [[self._encode(f"{paragraph}\n\n") for paragraph in page] for page in pages]
        self.docstrings = [self._encode(text) for text in docstrings]
        self._order: list[tuple[str, int]] = []

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    @property
    def page_tokens(self) -> int:
        return sum(len(paragraph) for page in self.pages for paragraph in page)

    @property
    def docstring_tokens(self) -> int:
        return sum(map(len, self.docstrings))

    def _document(self, limit: int) -> list[int]:
        """Return the next document, cut to the limit. A page may begin at any of its paragraphs."""
        if not self._order:
            # One pass: every docstring once, and as many pieces of the pages as cover them about twice.
            pieces = [max(1, 2 * sum(map(len, page)) // limit) for page in self.pages]
            self._order = [("docstring", i) for i in range(len(self.docstrings))]
            self._order += [("page", i) for i, count in enumerate(pieces) for _ in range(count)]
            self.rng.shuffle(self._order)
        kind, index = self._order.pop()
        if kind == "docstring":
            body = self.docstrings[index]
        else:
            page = self.pages[index]
            start = 0 if self.rng.random() < 0.15 else self.rng.randrange(len(page))
            body = []
            for paragraph in page[start:]:
                body = body + paragraph
                if len(body) > limit:
                    break
        return [self.ids[BEGIN], *body, self.ids[END]][:limit]

    def _conversation(self, limit: int) -> list[int]:
        sample = [self.ids[BEGIN]]
        for role, text in self.conversations.draw(self.rng):
            sample += [self.ids[role], *self._encode(text), self.ids[END]]
        return sample[:limit]

    def batch(self, rows: int, length: int, chat_share: float) -> Batch:
        """Return the next batch: some of its rows hold conversations, the others documents."""
        tokens = torch.full((rows, length), self.ids[PAD])
        labels = torch.full((rows, length), -100)
        positions = torch.zeros((rows, length), dtype=torch.long)
        owner = torch.zeros((rows, length), dtype=torch.long)
        for row in range(rows):
            draw = self._conversation if self.rng.random() < chat_share else self._document
            filled, number = 0, 0
            while length - filled >= 8:
                sample = torch.tensor(draw(length - filled))
                here = slice(filled, filled + len(sample))
                tokens[row, here] = sample
                labels[row, here] = sample
                labels[row, filled] = -100
                positions[row, here] = torch.arange(len(sample))
                owner[row, here] = number
                filled, number = filled + len(sample), number + 1
            owner[row, filled:] = number
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (owner[:, :, None] == owner[:, None, :]) & causal
        return Batch(tokens, positions, labels, mask[:, None])
