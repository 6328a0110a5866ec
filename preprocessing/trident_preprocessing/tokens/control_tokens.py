"""The control tokens of a tokenizer, and the tokenization of prompts in which some of their spellings are only text.

Owns which tokens are control tokens. Never knows which spellings are only text: `client_text` does.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.tokens.checkpoint_tokenizer import unknown_id


class ControlTokens:
    """The tokens of one tokenizer that a client's text must never become.

    These are its special tokens, and other added tokens that a chat template writes. An added token that is only white
    space is ordinary text.

    Args:
        tokenizer: a tokenizer of transformers around one of the tokenizers library.
        written: added tokens that the checkpoint's chat templates write.
    """

    def __init__(self, tokenizer: Any, written: Collection[str]) -> None:
        backend = tokenizer.backend_tokenizer
        self._added: dict[int, Any] = dict(sorted(backend.get_added_tokens_decoder().items()))
        named = {*written, *(getattr(tokenizer, "chat_control_tokens", None) or ())}
        spellings = {token.content: token_id for token_id, token in self._added.items()}
        #: Spelling -> id of each control token.
        self.ids = {
            token.content: spellings[token.content]
            for token in self._added.values()
            if token.special or (token.content in named and not token.content.isspace())
        }
        ends = {end for spelling in self.ids for end in (spelling[0], spelling[-1])}
        #: Every character of a spelling, and every character that one begins or ends with.
        self.characters = frozenset("".join(self.ids))
        self.ends = frozenset(ends)
        self._end = re.compile(f"[{re.escape(''.join(sorted(ends)))}]" if ends else "(?!)")
        self._joined = "\0".join(self.ids)
        self._longest = max(map(len, self.ids), default=0)
        self._normalizer = backend.normalizer if any(token.normalized for token in self._added.values()) else None
        self.spelling = any_of(self.ids)
        self._added_spelling = any_of(token.content for token in self._added.values())
        self._backend = backend
        self._unknown_id = unknown_id(backend)
        # All of one length, and made of a secret, so that no client can spell one.
        secret = secrets.token_hex(16)
        self._stand_ins = {spelling: f"{secret}x{token_id:08x}" for spelling, token_id in self.ids.items()}
        self._twin: Any = _twin(backend, self._added.values(), self._stand_ins)
        self._twin_ids = {
            self._twin.token_to_id(self._stand_ins.get(token.content, token.content)): token_id
            for token_id, token in self._added.items()
        }

    def has_end(self, text: str) -> bool:
        """Return whether a text has a character that a spelling begins or ends with, as it is or normalized."""
        if self._end.search(text):
            return True
        if self._normalizer is None or text.isascii():
            return False
        # Half a surrogate pair is refused later, if it reaches the prompt.
        whole = text.encode(errors="replace").decode()
        return bool(self._end.search(self._normalizer.normalize_str(whole)))

    def is_within(self, text: str) -> bool:
        """Return whether a text, trimmed, is a piece of a spelling whose rest a template might write around it."""
        piece = text.strip()
        return 0 < len(piece) < self._longest and piece in self._joined

    def encode(self, prompt: str, masked: str) -> list[int]:
        """Tokenize a prompt; only the control tokens that `masked` spells become control tokens.

        The rest is tokenized as if the tokenizer had no control tokens.

        Args:
            prompt: the text.
            masked: the text with every spelling that is only text made unrecognizable; as long as the prompt.

        Raises:
            RequestError: the tokenizer makes a control token of ordinary text.
        """
        pieces: list[str] = []
        end = 0
        for found in self._added_spelling.finditer(masked):
            if found.group() in self.ids:
                pieces += [prompt[end : found.start()], self._stand_ins[found.group()]]
                end = found.end()
        text = "".join([*pieces, prompt[end:]])
        # Only a batch, even of one text, lets other threads run.
        token_ids = self._twin.encode_batch([text], add_special_tokens=False)[0].ids
        # Every text that the vocabulary cannot spell becomes the unknown token, which therefore controls nothing.
        control = {token_id: spelling for spelling, token_id in self.ids.items() if token_id != self._unknown_id}
        for token_id in token_ids:
            if token_id in control and token_id not in self._twin_ids:
                problem = f"spells {control[token_id]!r}, which this tokenizer cannot write as text; leave it out"
                raise RequestError(tensors.MESSAGES.name, problem)
        return [self._twin_ids.get(token_id, token_id) for token_id in token_ids]


def any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of the spellings: the leftmost and then the longest, as added tokens are matched."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _twin(backend: Any, added: Collection[Any], stand_ins: dict[str, str]) -> Any:
    """Return a tokenizer that shares the model, in which stand-ins spell the control tokens."""
    twin = Tokenizer(backend.model)
    if backend.normalizer is not None:
        twin.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        twin.pre_tokenizer = backend.pre_tokenizer
    for token in added:
        spelled = AddedToken(
            stand_ins.get(token.content, token.content),
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special,
        )
        twin.add_tokens([spelled])
    return twin
