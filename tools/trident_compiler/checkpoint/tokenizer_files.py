"""A checkpoint's tokenizer, as the files that an engine folder carries.

Owns which files they are, and what older ones become: a template of chat_template.json is written where transformers
looks for templates, and a vocabulary without tokenizer.json is converted (see `tokenizer_conversion`). Never runs code
of the checkpoint, never renders a template.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.tokenizer_conversion import convertible_file, load_converted
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import CheckpointError

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
#: Where older processors save the template.
PROCESSOR_TEMPLATE_FILE = "chat_template.json"
#: Where transformers saves chat templates beside the default one.
NAMED_TEMPLATES = "additional_chat_templates"
_OPTIONAL_FILES = (CONFIG_FILE, SPECIAL_TOKENS_FILE, "added_tokens.json", TEMPLATE_FILE)
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer of one checkpoint folder.

    Args:
        folder: the checkpoint's.
        tokenizer: what tokenizer.json says, or would say.
        config: tokenizer_config.json; empty if there is none.
        ends: what else names the end-of-text token, where transformers reads it: special_tokens_map.json, or a file
            that was converted; else empty.
        processor_templates: templates of chat_template.json by name, where the tokenizer has none itself.
        converted_from: the file that was converted; None where there is a tokenizer.json.
        converted: the tokenizer in transformers, where it was converted.
    """

    folder: Path
    tokenizer: Tokenizer
    config: JsonConfig
    ends: JsonConfig
    processor_templates: dict[str, str]
    converted_from: str | None = None
    converted: Any = None

    @property
    def template_source(self) -> str:
        """Where the default chat template stands, for people."""
        if (self.folder / TEMPLATE_FILE).is_file():
            return TEMPLATE_FILE
        return PROCESSOR_TEMPLATE_FILE if self.processor_templates else f"{CONFIG_FILE}: chat_template"

    def write(self, target: Path) -> None:
        """Write the tokenizer's files into a new folder."""
        target.mkdir()
        if self.converted is not None:
            self.converted.save_pretrained(target)
        else:
            self._copy(target)
        for name, template in self.processor_templates.items():
            path = target / (TEMPLATE_FILE if name == "default" else f"{NAMED_TEMPLATES}/{name}.jinja")
            path.parent.mkdir(exist_ok=True)
            path.write_text(template, encoding="utf-8")

    def _copy(self, target: Path) -> None:
        for name in (layout.TOKENIZER_FILE, *_OPTIONAL_FILES):
            source = self.folder / name
            if source.is_file():
                shutil.copyfile(source, target / name)
        for source in sorted((self.folder / NAMED_TEMPLATES).glob("*.jinja")):
            (target / NAMED_TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(source, target / NAMED_TEMPLATES / source.name)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a checkpoint's tokenizer.

    Raises:
        CheckpointError: a file is missing, cannot be read or cannot be converted; says what to do.
    """
    config = JsonConfig.read_optional(folder / CONFIG_FILE)
    ends = JsonConfig({}, SPECIAL_TOKENS_FILE)
    if config.values.get("added_tokens_decoder") is None:
        ends = JsonConfig.read_optional(folder / SPECIAL_TOKENS_FILE)
    has_template = (folder / TEMPLATE_FILE).is_file() or config.values.get("chat_template") is not None
    templates = {} if has_template else _processor_templates(folder / PROCESSOR_TEMPLATE_FILE)
    path = folder / layout.TOKENIZER_FILE
    if path.is_file():
        return TokenizerFiles(folder, _read_tokenizer(path), config, ends, templates)
    source = convertible_file(folder)
    if source is None:
        raise CheckpointError(f"{path}: missing; save the tokenizer with transformers, which writes this file")
    converted = load_converted(folder, source)
    ends = JsonConfig({"eos_token": converted.eos_token}, source.name)
    return TokenizerFiles(folder, converted.backend_tokenizer, config, ends, templates, source.name, converted)


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _processor_templates(path: Path) -> dict[str, str]:
    """Return the templates by name: the file has one text, several by name, or a list of name and template."""
    templates = JsonConfig.read_optional(path)
    value = templates.values.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    named = {"default": value} if isinstance(value, str) else value
    if not isinstance(named, dict) or not all(isinstance(template, str) for template in named.values()):
        raise templates.refuse("chat_template", "must be a text, or texts by name")
    for name in named:
        if not isinstance(name, str) or not _TEMPLATE_NAME.fullmatch(name):
            raise templates.refuse("chat_template", f"{name!r} is no name of a template; letters, digits, _ and - are")
    return named
