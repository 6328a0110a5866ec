"""A prompt, or chat messages, to token ids, as the checkpoint's own tokenizer and chat template have it.

Owns the checks of the text, the bound on its size and the choice between prompt and messages. Never knows Triton, and
never counts tokens against the engine's limits: that is the core's part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from trident_ensemble import layout, tensors
from trident_ensemble.engine_limits import read_max_seq_len
from trident_ensemble.errors import ArtifactError, RequestError
from trident_preprocessing.messages import parse_messages

#: What a template that was written for other messages may raise while it is given these.
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)
#: JSON may spell one character in so many bytes (`\\u000a`), and puts so much around the text of a conversation.
_JSON_BYTES_PER_BYTE = 6
_JSON_OVERHEAD = 1 << 16


class PromptTokenizer:
    """The tokenizer of one engine.

    Args:
        tokenizer: of transformers.
        max_seq_len: the engine's, in tokens.
    """

    def __init__(self, tokenizer: Any, max_seq_len: int) -> None:
        self._tokenizer = tokenizer
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        #: Even of the longest token no more than this would fit, so larger texts need not be tokenized to be refused.
        self.max_text_bytes = max_seq_len * longest

    def encode(self, text_input: bytes | None, messages: bytes | None) -> list[int]:
        """The token ids of a request, of which exactly one argument is given; both are UTF-8.

        A plain prompt gets the special tokens that the tokenizer adds by default (a beginning of text, say); of
        messages the chat template decides, and it asks for an answer.

        Raises:
            RequestError: none or both given, or one that cannot be tokenized; names the field and says why.
        """
        if text_input is not None and messages is not None:
            raise RequestError(tensors.TEXT_INPUT.name, "given together with messages; send one of them")
        if text_input is not None:
            return self._encode_text(text_input)
        if messages is not None:
            return self._encode_messages(messages)
        raise RequestError(tensors.TEXT_INPUT.name, "missing; send text_input, or messages for a chat")

    def _encode_text(self, raw: bytes) -> list[int]:
        field = tensors.TEXT_INPUT.name
        if not raw:
            raise RequestError(field, "empty; send at least one character")
        text = _utf8(field, raw, self.max_text_bytes)
        return self._tokenize(field, text, add_special_tokens=True)

    def _encode_messages(self, raw: bytes) -> list[int]:
        field = tensors.MESSAGES.name
        text = _utf8(field, raw, self.max_text_bytes * _JSON_BYTES_PER_BYTE + _JSON_OVERHEAD)
        messages = parse_messages(text)
        if not self._tokenizer.chat_template:
            raise RequestError(field, "the served checkpoint has no chat template; send text_input")
        try:
            prompt: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except _RENDER_ERRORS as error:
            raise RequestError(field, f"the checkpoint's chat template refuses them: {error}") from None
        try:
            num_bytes = len(prompt.encode())
        except UnicodeEncodeError:
            raise RequestError(field, r"half a surrogate pair (\ud800 to \udfff) is no character") from None
        if num_bytes > self.max_text_bytes:
            raise RequestError(field, _too_large(num_bytes, self.max_text_bytes))
        return self._tokenize(field, prompt, add_special_tokens=False)

    def _tokenize(self, field: str, text: str, *, add_special_tokens: bool) -> list[int]:
        # verbose is about model_max_length, which the checkpoint may state wrongly; the engine's limit counts.
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        token_ids: list[int] = encoded["input_ids"]
        if not token_ids:
            raise RequestError(field, "has no tokens for this tokenizer; send more text")
        return token_ids


def _utf8(field: str, raw: bytes, max_bytes: int) -> str:
    if len(raw) > max_bytes:
        raise RequestError(field, _too_large(len(raw), max_bytes))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RequestError(field, f"not valid UTF-8 (byte {error.start}); send UTF-8") from None


def _too_large(num_bytes: int, max_bytes: int) -> str:
    return f"{num_bytes} bytes are more than the engine's longest prompt can have; at most {max_bytes}; shorten it"


def load_tokenizer(engine_folder: Path) -> PromptTokenizer:
    """The tokenizer of an engine, with nothing downloaded and no code of the checkpoint's run.

    Raises:
        ArtifactError: the engine folder lacks its manifest or its tokenizer, or they cannot be read.
    """
    max_seq_len = read_max_seq_len(engine_folder)
    folder = engine_folder / layout.TOKENIZER_FOLDER
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is missing; build again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers raises, the load fails with the folder's name
        raise ArtifactError(f"{folder} cannot be loaded: {error}") from error
    return PromptTokenizer(tokenizer, max_seq_len)
