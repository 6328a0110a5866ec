"""The parameters of each model's config.pbtxt, typed.

Owns their names, defaults and bounds; parses them once into frozen dataclasses. Never reads a file or the environment.
Limits of the engine are not here: its manifest is their only source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from trident_ensemble import layout
from trident_ensemble.errors import ConfigError

Settings = TypeVar("Settings", bound="TextSettings | CoreSettings | UnarySettings")


@dataclass(frozen=True)
class TextSettings:
    """Of preprocessing and postprocessing.

    Args:
        core_model: name of the model whose engine folder holds the tokenizer.
    """

    core_model: str = layout.CORE


@dataclass(frozen=True)
class CoreSettings:
    """Of the core.

    Args:
        max_queue_size: requests that may wait; one more is answered UNAVAILABLE at once.
        pause_after_ms: a stream whose chunk goes unacknowledged for so long takes no further steps.
        abandon_after_ms: and is ended after so long, freeing its blocks.
    """

    max_queue_size: int = 1024
    pause_after_ms: int = 350
    abandon_after_ms: int = 3000


@dataclass(frozen=True)
class UnarySettings:
    """Of the unary front.

    Args:
        max_concurrent_requests: requests in flight; one more is answered UNAVAILABLE at once.
    """

    max_concurrent_requests: int = 256


def parse_parameters(kind: type[Settings], parameters: Mapping[str, Any]) -> Settings:
    """The settings in a model configuration's `parameters`, as Triton hands them over (`{key: {string_value: ...}}`).

    Raises:
        ConfigError: an unknown key, or a value that is no positive whole number where one is needed.
    """
    known = {field.name: field for field in fields(kind)}
    values: dict[str, str | int] = {}
    for key, wrapped in parameters.items():
        text = wrapped["string_value"] if isinstance(wrapped, Mapping) else str(wrapped)
        if key not in known:
            raise ConfigError(f"parameters.{key}: unknown; known are {', '.join(sorted(known))}")
        if isinstance(known[key].default, int):
            if not text.isdecimal() or int(text) < 1:
                raise ConfigError(f"parameters.{key}: must be a whole number of at least 1, not {text!r}")
            values[key] = int(text)
        else:
            if not text or "/" in text or text.startswith("."):
                raise ConfigError(f"parameters.{key}: must be the plain name of a model, not {text!r}")
            values[key] = text
    return kind(**values)  # type: ignore[arg-type]


def render_parameters(settings: TextSettings | CoreSettings | UnarySettings) -> dict[str, str]:
    """The inverse of `parse_parameters`."""
    return {key: str(value) for key, value in asdict(settings).items()}
