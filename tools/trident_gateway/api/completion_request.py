"""The body of `/v1/completions`.

Owns its fields, the rules between them, and the forms in which prompts come. Never asks what a model can do.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from trident_gateway.api.body import invalid
from trident_gateway.api.sampling_fields import MAX_INT32, SamplingFields, TokenId, check_sampling
from trident_gateway.errors import InvalidRequestError

MAX_PROMPTS = 32
#: What the specification of the API says; chat has no default.
_DEFAULT_MAX_TOKENS = 16

Prompt: TypeAlias = str | tuple[int, ...]
_PromptItem: TypeAlias = str | TokenId | list[TokenId]


class CompletionRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Prompts that are to be continued."""

    prompt: str | list[_PromptItem]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None

    add_special_tokens: bool | None = None

    suffix: Annotated[None, Meta(description="No model here fills in the middle of a text.")] = None


def check_completion(request: CompletionRequest, max_n: int) -> None:
    """Refuse a body whose fields do not go together.

    Args:
        request: the body.
        max_n: answers to a prompt that a client may ask for.

    Raises:
        InvalidRequestError: names the field.
    """
    check_sampling(request, max_n)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise invalid("best_of", "must equal 'n': answers are not ranked here.")
    if request.max_tokens == 0 and (request.n or 1) > 1:
        raise invalid("n", "must be 1 where 'max_tokens' is 0.")


def prompts_of(request: CompletionRequest) -> tuple[Prompt, ...]:
    """Return the prompts, each a text or token ids.

    Raises:
        InvalidRequestError: they are mixed, too many, or empty.
    """
    raw = request.prompt
    if isinstance(raw, str):
        return (raw,)
    if not raw:
        raise invalid("prompt", "must not be an empty list.")
    if isinstance(raw[0], int):
        return (_token_ids(raw, "prompt"),)
    if len(raw) > MAX_PROMPTS:
        raise invalid("prompt", f"must hold at most {MAX_PROMPTS} prompts, not {len(raw)}.")
    return tuple(_prompt(item, f"prompt[{index}]", is_text=isinstance(raw[0], str)) for index, item in enumerate(raw))


def max_tokens_of(request: CompletionRequest) -> int:
    """Return the most tokens of an answer."""
    return _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


def _prompt(item: _PromptItem, path: str, *, is_text: bool) -> Prompt:
    if isinstance(item, str) and is_text:
        return item
    if isinstance(item, list) and not is_text:
        return _token_ids(item, path)
    raise _mixed(path, "a text" if is_text else "a list of token ids")


def _token_ids(items: list[_PromptItem] | list[int], path: str) -> tuple[int, ...]:
    if not items:
        raise invalid(path, "must hold at least one token id.")
    for index, item in enumerate(items):
        if not isinstance(item, int):
            raise _mixed(f"{path}[{index}]", "a token id")
    return tuple(items)  # type: ignore[arg-type]


def _mixed(path: str, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid type for '{path}': must be {wanted}, as the first one is.", code="invalid_type", param=path
    )
