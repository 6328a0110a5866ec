"""How a checkpoint writes tool calls and reasoning, found by rendering a conversation that has them.

Owns that conversation, and the signs by which formats are told apart: what the template writes, never the model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from trident_ensemble.contract.model_card import Marker, Reasoning, ToolFormat
from trident_preprocessing.chat.template_profile import TemplateProfile
from trident_preprocessing.chat.template_renderer import TemplateRenderer


@dataclass(frozen=True)
class OutputMarkers:
    """What a model card says of the output; the fields are the card's.

    Args:
        takes_tools: the chat template writes tools.
        tool_format: how calls are written; None where that is not known.
        tool_markers: the markers of that format, by role.
        reasoning: how reasoning is marked; None if it is not.
    """

    takes_tools: bool = False
    tool_format: ToolFormat | None = None
    tool_markers: Mapping[str, Marker] = field(default_factory=dict)
    reasoning: Reasoning | None = None


def find_markers(
    renderer: TemplateRenderer, profiles: Mapping[str, TemplateProfile], tokenizer: Tokenizer, vocab_size: int
) -> OutputMarkers:
    """Return what the checkpoint's templates show of tool calls and reasoning.

    Args:
        renderer: renders the checkpoint's templates; it may have none.
        profiles: the form of messages that each of them takes, from `probe_profiles`.
        tokenizer: in which markers are one token, or are spelled by several.
        vocab_size: of the network; an id beyond it is no marker's.

    The caller bounds the time that the templates take.
    """
    raise NotImplementedError
