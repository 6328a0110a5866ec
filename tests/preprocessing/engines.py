"""Engine folders with a tokenizer and as much of a manifest as preprocessing reads."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.fakes.manifests import write_small_manifest
from tests.tokenizer_zoo import SPECIAL, tokenizer_of
from trident_preprocessing.chat.template_probe import probe_profiles
from trident_preprocessing.chat.template_profile import write_profiles
from trident_preprocessing.chat.template_renderer import TemplateRenderer

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' + message.role) }}{% endif %}"
    "<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def make_engine_folder(
    folder: Path,
    family: str,
    *,
    chat_template: str | dict[str, str] | None = CHAT_TEMPLATE,
    max_seq_len: int = 64,
) -> Path:
    """Save a tokenizer of the zoo as a checkpoint has it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(family), bos_token=SPECIAL[0], eos_token=SPECIAL[1]
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder / "tokenizer")
    write_profiles(folder, probe_profiles(TemplateRenderer(tokenizer)))
    write_small_manifest(folder, max_seq_len)
    return folder
