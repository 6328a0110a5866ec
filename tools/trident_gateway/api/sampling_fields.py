"""The fields that chat and completions have in common.

Owns their types and bounds. Never translates them.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from trident_gateway.api.body import NO_EFFECT, invalid

MAX_INT32 = 2**31 - 1
MAX_CHOICES = 128

Probability: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_INT32)]
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Bias: TypeAlias = Annotated[float, Meta(ge=-100, le=100)]
#: Longer ones name no model, and would only come back in an error.
ModelName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
CacheKey: TypeAlias = Annotated[str, Meta(max_length=1024)]
TokenNumber: TypeAlias = Annotated[str, Meta(pattern="^[0-9]{1,10}$")]


class StreamOptions(Struct, forbid_unknown_fields=True, frozen=True):
    """The choices about a stream.

    Args:
        include_usage: one more chunk, with the usage.
        include_obfuscation: OpenAI pads its chunks against traffic analysis; this gateway does not.
    """

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, NO_EFFECT] = None


class SamplingFields(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """The fields that any request for generated text may have.

    OpenAI's own fields come first, then those without effect, then what vLLM's clients send.
    """

    model: ModelName
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[Text], Meta(max_length=32)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenNumber, Bias], Meta(max_length=1000)] | None = None
    prompt_cache_key: CacheKey | None = None

    user: Annotated[str | None, NO_EFFECT] = None
    metadata: Annotated[dict[str, str] | None, NO_EFFECT] = None
    safety_identifier: Annotated[str | None, NO_EFFECT] = None

    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: Annotated[list[Text], Meta(max_length=256)] | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Meta(min_length=1, max_length=1024)] | None = None
    guided_grammar: Text | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=86_400)] | None = None


def check_sampling(fields: SamplingFields, max_n: int) -> None:
    """Refuse fields whose types are right and that do not go together.

    Args:
        fields: of the request.
        max_n: answers that a client may ask for.

    Raises:
        InvalidRequestError: names the field.
    """
    if fields.n is not None and fields.n > max_n:
        raise invalid("n", f"must be at most {max_n} here.")
    if fields.stream_options is not None and not fields.stream and fields.stream_options != StreamOptions():
        raise invalid("stream_options", "needs 'stream' to be true.")
    if fields.stop == "":
        raise invalid("stop", "must not be an empty text.")
    if fields.truncate_prompt_tokens == 0:
        raise invalid("truncate_prompt_tokens", "must be at least 1, or -1.")
