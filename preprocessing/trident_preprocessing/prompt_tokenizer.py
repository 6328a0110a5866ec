"""Tokenization of a prompt or of chat messages, by the checkpoint's own tokenizer and chat template.

Owns the checks of the prompt, the bounds on its size in bytes and tokens, and the choice between text, messages and
ids. Any number of threads may use it. Never knows Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.client_input import check_size, decode_text
from trident_ensemble.contract.errors import ContextLengthError, RequestError
from trident_ensemble.contract.manifest import read_manifest
from trident_preprocessing.chat.chat_template import ChatTemplate, refuse_chat_inputs, refuse_text_inputs
from trident_preprocessing.chat.template_profile import TemplateProfile, read_profiles
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.tokens.bad_words import BadWords
from trident_preprocessing.tokens.checkpoint_tokenizer import open_tokenizer
from trident_preprocessing.tokens.token_bound import has_more_tokens
from trident_preprocessing.tokens.truncation import Truncation, parse_truncation

#: Bytes in which JSON may spell one character (`\\u000a`), and bytes that it may put around the text of a conversation.
_JSON_BYTES_PER_BYTE = 6
_JSON_OVERHEAD = 1 << 16
#: JSON larger than this, and than the longest prompt, is refused however it spells its characters, because reading it
#: blocks the interpreter for all other requests.
_MAX_JSON_BYTES = 1 << 23
#: Bytes of a prompt that will be truncated. All of it is tokenized, because a cut changes the tokens around it.
_MAX_CUT_TEXT_BYTES = 1 << 20
#: Ids of such a prompt.
_MAX_CUT_IDS = 1 << 20
_TEMPLATE_WRITES = f"for {tensors.MESSAGES.name}, the chat template writes all special tokens"
_AS_IT_IS = f"{tensors.PROMPT_TOKEN_IDS.name} is taken as it is"
_TOO_LARGE = "the engine's longest prompt can have"
_TOO_LARGE_TO_CUT = "a prompt that is cut may have"


#: Of which a request has one.
_PROMPTS = (tensors.TEXT_INPUT, tensors.MESSAGES, tensors.PROMPT_TOKEN_IDS)


class PromptTokenizer:
    """The tokenizer of one engine.

    Args:
        tokenizer: a tokenizer of transformers.
        max_seq_len: tokens of prompt and output together that the engine holds.
        profiles: the profiles of its chat templates from the engine folder; None to probe the templates here.
        vocab_size: token ids that the network knows; None for those that the tokenizer knows.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_seq_len: int,
        profiles: Mapping[str, TemplateProfile] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = ChatTemplate(tokenizer, profiles)
        self._max_seq_len = max_seq_len
        self._vocab_size = len(tokenizer) if vocab_size is None else vocab_size
        self.bad_words = BadWords(tokenizer)
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        #: A text larger than this cannot fit even if it has only the longest token, so it is refused untokenized.
        self.max_text_bytes = max_seq_len * longest
        #: A prompt of more ids than this is refused even if it is to be cut.
        self.max_num_ids = max(max_seq_len, _MAX_CUT_IDS)

    def encode(self, request: PromptRequest) -> list[int]:
        """Return the token ids of a request, which has one of text_input, messages and prompt_token_ids.

        A plain prompt gets the special tokens that the tokenizer adds by default, such as a beginning of text, and
        truncation keeps these. For messages the chat template writes the special tokens, and truncation treats them
        like any other token, as it does those of a prompt that is given as ids.

        Raises:
            RequestError: none or several of these are given, or the prompt cannot be served; names the field and says
                why.
        """
        given = [spec for spec in _PROMPTS if getattr(request, spec.name) is not None]
        if not given:
            problem = "is missing; send text_input, or messages for a chat, or prompt_token_ids"
            raise RequestError(tensors.TEXT_INPUT.name, problem)
        if len(given) > 1:
            raise RequestError(given[0].name, f"is given together with {given[1].name}; send one of them")
        truncation = parse_truncation(request, self._max_seq_len)
        if request.prompt_token_ids is not None:
            refuse_chat_inputs(request, tensors.PROMPT_TOKEN_IDS)
            refuse_text_inputs(request, _AS_IT_IS)
            return self._check_ids(list(request.prompt_token_ids), truncation)
        max_bytes, why = self.max_text_bytes, _TOO_LARGE
        if truncation is not None:
            max_bytes, why = max(max_bytes, _MAX_CUT_TEXT_BYTES), _TOO_LARGE_TO_CUT
        if request.text_input is not None:
            refuse_chat_inputs(request, tensors.TEXT_INPUT)
            field = tensors.TEXT_INPUT.name
            text = decode_text(field, request.text_input, max_bytes, why)
            add_special_tokens = request.add_special_tokens is not False
            return self._tokenize(field, text, truncation, add_special_tokens=add_special_tokens)
        refuse_text_inputs(request, _TEMPLATE_WRITES)
        field = tensors.MESSAGES.name
        prompt = self._chat.render(request, self._max_json_bytes(max_bytes))
        try:
            check_size(field, len(prompt.encode()), max_bytes, why)
        except UnicodeEncodeError:
            raise RequestError(field, r"half a surrogate pair (\ud800 to \udfff) is not a character") from None
        if prompt.masked is None:
            return self._tokenize(field, prompt, truncation, add_special_tokens=False)
        self._refuse_giant(field, prompt, truncation)
        token_ids = self._chat.encode(prompt, prompt.masked)
        return self._checked(field, token_ids) if truncation is None else truncation.cut(token_ids)

    def _check_ids(self, token_ids: list[int], truncation: Truncation | None) -> list[int]:
        field = tensors.PROMPT_TOKEN_IDS.name
        if not token_ids:
            raise RequestError(field, "must hold at least one id")
        if min(token_ids) < 0 or max(token_ids) >= self._vocab_size:
            raise RequestError(field, f"every id must be from 0 to {self._vocab_size - 1}")
        return self._checked(field, token_ids) if truncation is None else truncation.cut(token_ids)

    def _tokenize(self, field: str, text: str, truncation: Truncation | None, *, add_special_tokens: bool) -> list[int]:
        self._refuse_giant(field, text, truncation)
        # verbose=False: the engine, not model_max_length, which a checkpoint may state wrongly, limits the prompt.
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        token_ids: list[int] = encoded["input_ids"]
        if not token_ids:
            problem = "send more text" if text else "it adds no token to an empty text; send at least one character"
            raise RequestError(field, f"has no tokens for this tokenizer; {problem}")
        if truncation is None:
            return self._checked(field, token_ids)
        # The mask marks special tokens that the tokenizer added, not those that the text itself spells.
        return truncation.cut(token_ids, encoded.encodings[0].special_tokens_mask)

    def _refuse_giant(self, field: str, text: str, truncation: Truncation | None) -> None:
        if truncation is None and has_more_tokens(self._tokenizer.backend_tokenizer, text, self._max_seq_len):
            raise self._too_long(field, f"more than {self._max_seq_len}")

    def _checked(self, field: str, token_ids: list[int]) -> list[int]:
        """Refuse a prompt that leaves no room for an answer."""
        if len(token_ids) >= self._max_seq_len:
            raise self._too_long(field, str(len(token_ids)))
        return token_ids

    def _too_long(self, field: str, num_tokens: str) -> ContextLengthError:
        problem = f"a prompt of {num_tokens} tokens is too long: the engine's max_seq_len is {self._max_seq_len}"
        return ContextLengthError(field, f"{problem}, with at least one token of output")

    @staticmethod
    def _max_json_bytes(max_text_bytes: int) -> int:
        return min(max_text_bytes * _JSON_BYTES_PER_BYTE, max(max_text_bytes, _MAX_JSON_BYTES)) + _JSON_OVERHEAD


def load_tokenizer(engine_folder: Path) -> PromptTokenizer:
    """Load the tokenizer of an engine; nothing is downloaded, and no code of the checkpoint is run.

    Raises:
        ArtifactError: the manifest, the tokenizer or the template profiles are missing from the engine folder or cannot
            be read.
    """
    manifest = read_manifest(engine_folder)
    tokenizer = open_tokenizer(engine_folder / layout.TOKENIZER_FOLDER)
    profiles, vocab_size = read_profiles(engine_folder), manifest.architecture.vocab_size
    return PromptTokenizer(tokenizer, manifest.limits.max_seq_len, profiles, vocab_size)
