"""The options by which a request says what ends its output.

Owns the bounds and defaults of these options. Pure. Never looks for a stop string.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trident_backend.requests.fields import RequestFields
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.manifest import Generation
from trident_ensemble.text.special_tokens import SpecialTokens

MAX_NUM_STOP_WORDS = 32
MAX_STOP_WORD_BYTES = 1024
MAX_NUM_STOP_IDS = 1024


@dataclass(frozen=True)
class StopOptions:
    """Everything that ends a sequence of a request.

    Args:
        end_ids: tokens that end the text by themselves, such as the end of a turn.
        stop_ids: tokens that end the text because the request says so.
        stop_id_words: the text, as the client wrote it, of each stop id that the request names by its text alone.
        stop_words: texts that end the output, including the texts of single tokens.
        include_stop: whether the token or text that ended the output is part of it.
    """

    end_ids: frozenset[int]
    stop_ids: frozenset[int]
    stop_id_words: Mapping[int, str]
    stop_words: tuple[str, ...]
    include_stop: bool


def parse_stop_options(
    fields: RequestFields, defaults: Generation, vocab_size: int, special: SpecialTokens
) -> StopOptions:
    """Read what ends a request's output; with `ignore_eos`, only its own stop words and stop ids do.

    A stop word that is the text of a special token becomes a stop id as well, because such a token may have no text in
    the output.

    Raises:
        RequestError: a field is out of bounds.
    """
    end_id = fields.integer(tensors.END_ID, -1, -1, vocab_size - 1)
    stop_ids = fields.integers(tensors.STOP_TOKEN_IDS)
    if len(stop_ids) > MAX_NUM_STOP_IDS:
        raise RequestError(tensors.STOP_TOKEN_IDS.name, f"{len(stop_ids)} are too many: at most {MAX_NUM_STOP_IDS}")
    if stop_ids and not 0 <= min(stop_ids) <= max(stop_ids) < vocab_size:
        raise RequestError(tensors.STOP_TOKEN_IDS.name, f"every id must be from 0 to {vocab_size - 1}")
    stop_words = fields.texts(tensors.STOP_WORDS, MAX_NUM_STOP_WORDS, MAX_STOP_WORD_BYTES)
    end_ids: frozenset[int] = frozenset()
    if not fields.flag(tensors.IGNORE_EOS, default=False):
        end_ids = frozenset(defaults.end_ids) | ({end_id} if end_id >= 0 else frozenset())
        stop_words = tuple(dict.fromkeys((*stop_words, *defaults.stop_strings)))
    named: dict[int, str] = {}
    for word in stop_words:
        for token_id in special.ids_of(word):
            if token_id < vocab_size and token_id not in stop_ids:
                named.setdefault(token_id, word)
    include_stop = fields.flag(tensors.INCLUDE_STOP, default=False)
    return StopOptions(end_ids, frozenset((*stop_ids, *named)), named, stop_words, include_stop)
