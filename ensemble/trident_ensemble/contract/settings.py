"""The parameters of each model's config.pbtxt, typed.

Owns their names, defaults and bounds; parses them once into frozen dataclasses. Never reads a file or the environment.
Limits of the engine are not here: its manifest is their only source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from typing import Any, Protocol, TypeVar

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ConfigError

#: Far more than a machine has; an index beyond it is a typing error.
_MOST_GPUS = 1024
#: A client that is gone is noticed with the next chunk, and its sequence generates until then.
MAX_STREAM_INTERVAL_MS = 1000

Settings = TypeVar("Settings", bound="TextSettings | CoreSettings | UnarySettings")


class BatchSchedulerPolicy(str, Enum):
    """The rules by which waiting sequences start."""

    #: A sequence starts when all blocks it may ever need are free, and is never interrupted.
    GUARANTEED_NO_EVICT = "guaranteed_no_evict"
    #: A sequence starts when its prompt fits; when blocks run out, the youngest waits and is computed again later.
    MAX_UTILIZATION = "max_utilization"


@dataclass(frozen=True)
class TextSettings:
    """The parameters of preprocessing and postprocessing.

    Args:
        core_model: name of the model whose engine folder holds the tokenizer.
    """

    core_model: str = layout.CORE


def _about(
    doc: str,
    *,
    least: int = 1,
    most: int | None = None,
    metavar: str = "N",
    parse: Callable[[str], Any] | None = None,
) -> Mapping[str, Any]:
    return {"doc": doc, "least": least, "most": most, "metavar": metavar, "parse": parse}


def _parse_weights(text: str) -> tuple[tuple[str, float], ...]:
    weights = tuple(_parse_weight(item) for item in text.split(",") if item)
    if len(dict(weights)) < len(weights):
        raise ValueError(f"must name each tenant once, not {text!r}")
    return weights


def _parse_weight(item: str) -> tuple[str, float]:
    name, equals, text = item.rpartition("=")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not equals or not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"must be name=weight,... with weights above 0, not {item!r}")
    return name, weight


def _parse_gpus(text: str) -> tuple[int, ...]:
    items = text.split(",") if text else []
    if all(item.isdecimal() and len(item) <= len(str(_MOST_GPUS)) for item in items):
        numbers = tuple(int(item) for item in items)
        if len(set(numbers)) == len(numbers) and max(numbers, default=0) < _MOST_GPUS:
            return numbers
    raise ValueError(f"must be distinct GPU indices below {_MOST_GPUS}, such as 0 or 0,1, not {text!r}")


@dataclass(frozen=True)
class CoreSettings:
    """The core's parameters. The text beside each is also the help of its command line option."""

    batch_scheduler_policy: BatchSchedulerPolicy = field(
        default=BatchSchedulerPolicy.GUARANTEED_NO_EVICT,
        metadata=_about(
            "guaranteed_no_evict: a sequence starts when all blocks it may ever need are free; max_utilization: it "
            "starts when its prompt fits, and the youngest is computed again later when blocks run out"
        ),
    )
    token_budget: int = field(
        default=0, metadata=_about("tokens computed in one step, at most; 0: the engine's max_num_tokens", least=0)
    )
    target_itl_ms: int = field(
        default=0,
        metadata=_about(
            "latency budget: prompts are computed in chunks that keep running streams' tokens this close; 0: none",
            least=0,
        ),
    )
    enable_kv_cache_reuse: bool = field(
        default=True, metadata=_about("whether prompts share the cached blocks of equal beginnings")
    )
    default_max_tokens: int = field(
        default=4096,
        metadata=_about(
            "output tokens, at most, of a request that does not say how many; less where the context leaves less"
        ),
    )
    max_draft_tokens: int = field(
        default=0,
        metadata=_about("draft tokens for a stream in a step, at most, by prompt lookup; 0: none", least=0),
    )
    max_queue_size: int = field(
        default=1024, metadata=_about("requests that may wait; one more is answered UNAVAILABLE at once")
    )
    max_queue_tokens: int = field(
        default=262144, metadata=_about("prompt tokens that may wait, beside as many as the KV cache holds")
    )
    priority_aging_ms: int = field(
        default=1000, metadata=_about("waiting time that makes up for one level of priority")
    )
    tenant_weights: tuple[tuple[str, float], ...] = field(
        default=(),
        metadata=_about(
            "shares of tenants, name=weight,...; any other tenant has 1; an empty name: requests without one",
            metavar="NAME=W,...",
            parse=_parse_weights,
        ),
    )
    stream_interval_ms: int = field(
        default=50,
        metadata=_about(
            "after its first token a stream's tokens leave at most so often, together with those that came meanwhile; "
            "0: each at once",
            least=0,
            most=MAX_STREAM_INTERVAL_MS,
        ),
    )
    pause_after_ms: int = field(
        default=350, metadata=_about("a stream whose reader is this far behind gets no further steps")
    )
    abandon_after_ms: int = field(
        default=3000, metadata=_about("a stream whose reader is this far behind is ended, and its blocks are freed")
    )
    guided_memory_mb: int = field(
        default=2048,
        metadata=_about(
            "MiB that the grammars of guided decoding may take; a guide beyond is answered UNAVAILABLE", least=64
        ),
    )
    metrics_period_ms: int = field(
        default=1000,
        metadata=_about("time between two updates of the metrics at Triton's port", least=10, most=60_000),
    )
    gpu: tuple[int, ...] = field(
        default=(),
        metadata=_about(
            "indices of the GPUs that an engine compiled for GPUs runs on: one, or one for each of its parts",
            metavar="N,...",
            parse=_parse_gpus,
        ),
    )


@dataclass(frozen=True)
class UnarySettings:
    """The parameters of the unary front.

    Args:
        max_concurrent_requests: requests in flight; one more is answered UNAVAILABLE at once.
        ensemble: name of the ensemble whose steps it walks.
    """

    max_concurrent_requests: int = 256
    ensemble: str = layout.ENSEMBLE


class EngineLimits(Protocol):
    """The limits of an engine that a core's settings must keep to."""

    @property
    def max_num_seqs(self) -> int:
        """Most sequences in one step."""
        ...

    @property
    def max_num_tokens(self) -> int:
        """Most tokens computed in one step."""
        ...

    @property
    def supports_draft_tokens(self) -> bool:
        """Whether the draft tokens of several sequences are verified in one pass of the network."""
        ...


def check_limits(settings: CoreSettings, limits: EngineLimits) -> None:
    """Refuse settings that an engine cannot serve.

    Raises:
        ConfigError: names the parameter and the limit.
    """
    least, most = limits.max_num_seqs, limits.max_num_tokens
    if settings.token_budget and not least <= settings.token_budget <= most:
        raise ConfigError(
            f"parameters.token_budget: must be from {least} (max_num_seqs) to {most} (max_num_tokens), "
            f"not {settings.token_budget}"
        )
    if settings.max_draft_tokens and not limits.supports_draft_tokens:
        raise ConfigError(
            f"parameters.max_draft_tokens: must be 0, not {settings.max_draft_tokens}: this engine's KV cache has "
            "slots, and each sequence with draft tokens would take a pass of its own through the network"
        )


def parse_parameters(kind: type[Settings], parameters: Mapping[str, Any]) -> Settings:
    """Return the settings in a model configuration's `parameters`.

    Args:
        kind: the class of the settings.
        parameters: as Triton passes them, `{key: {string_value: ...}}`.

    Raises:
        ConfigError: a key is unknown, or its value is not valid.
    """
    texts = {
        key: wrapped["string_value"] if isinstance(wrapped, Mapping) else str(wrapped)
        for key, wrapped in parameters.items()
    }
    known = {known_field.name: known_field for known_field in fields(kind)}
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in known:
            raise ConfigError(f"parameters.{key}: unknown; known are {', '.join(sorted(known))}")
        try:
            values[key] = parse_value(known[key], text)
        except ValueError as error:
            raise ConfigError(f"parameters.{key}: {error}") from None
    return kind(**values)


def parse_value(known: Field[Any], text: str) -> Any:
    """Return a setting's value from its text.

    Raises:
        ValueError: the text is not valid; says what it must be.
    """
    default = known.default
    if known.metadata.get("parse"):
        return known.metadata["parse"](text)
    if isinstance(default, Enum):
        return _parse_choice(type(default), text)
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"must be true or false, not {text!r}")
        return text == "true"
    if isinstance(default, int):
        least, most = known.metadata.get("least", 1), known.metadata.get("most")
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        if not text.isdecimal() or not least <= int(text) <= (math.inf if most is None else most):
            raise ValueError(f"must be a whole number {bounds}, not {text!r}")
        return int(text)
    if not text or "/" in text or text.startswith("."):
        raise ValueError(f"must be the plain name of a model, not {text!r}")
    return text


def _parse_choice(kind: type[Enum], text: str) -> Enum:
    choices = [choice.value for choice in kind]
    if text not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}, not {text!r}")
    return kind(text)


def render_parameters(settings: TextSettings | CoreSettings | UnarySettings) -> dict[str, str]:
    """Return the texts of the settings, from which `parse_parameters` makes the same settings."""
    return {known.name: render_value(getattr(settings, known.name)) for known in fields(settings)}


def render_value(value: Any) -> str:
    """Return the text of a value, from which `parse_value` makes the same value."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(item) if isinstance(item, int) else _render_weight(*item) for item in value)
    return str(value)


def _render_weight(name: str, weight: float) -> str:
    return f"{name}={weight!r}".removesuffix(".0")
