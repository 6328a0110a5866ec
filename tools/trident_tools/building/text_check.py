"""The check of a checkpoint's text side: what serving will load is loaded and tried before the network is compiled.

Owns the order of the checks, and which findings end a build and which are only shown. A build of an hour must not fail
at its end, and an engine that was built must serve. Never runs code of the checkpoint, and never decides how text is
served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trident_backend.guided.vocabulary import read_vocabulary
from trident_compiler.checkpoint.tokenizer_files import CONFIG_FILE
from trident_compiler.model_folder import ModelFolder
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, CheckpointError
from trident_ensemble.contract.layout import TOKENIZER_FILE
from trident_ensemble.text.detokenizer import load_detokenizer
from trident_preprocessing.chat.template_probe import write_template_profiles
from trident_preprocessing.chat.template_profile import read_profiles
from trident_preprocessing.chat.template_renderer import TemplateRenderer
from trident_preprocessing.chat.time_limit import TimeLimit, TimeLimitError
from trident_preprocessing.tokens.checkpoint_tokenizer import open_tokenizer
from trident_tools.building.output_markers import OutputMarkers, find_markers
from trident_tools.building.template_check import TemplateFindings, find_out

#: The subject and the text of a line in the build's plan.
Line = tuple[str, str]

_MAX_SECONDS = 30
_MAX_NAMED = 3
#: Texts in which pre-tokenizers and normalizers are known to differ.
_PROBES = (
    "The trident has three prongs, doesn't it?",
    " 1234567 + 89 = x_1 ",
    "naïve cafe\u0301, Привет мир, 東京は日本の首都です",
    "def step(self):\n\n    return [x ** 2]",
)


@dataclass(frozen=True)
class TextFindings:
    """The findings of the check of the text side.

    Args:
        lines: for the user, some of them warnings.
        markers: how the checkpoint writes tool calls and reasoning.
    """

    lines: tuple[Line, ...]
    markers: OutputMarkers


def check_text(checkpoint: ModelFolder, engine_folder: Path) -> TextFindings:
    """Load the tokenizer, the chat templates, the detokenizer and the vocabulary of guides as serving does.

    The profiles of the templates are written into the engine folder.

    Args:
        checkpoint: the checkpoint that is built.
        engine_folder: the engine folder, which already has the tokenizer's files.

    Raises:
        CheckpointError: something cannot be served; names the file and what to do.
    """
    folder = engine_folder / layout.TOKENIZER_FOLDER
    tokenizer = _load(checkpoint, folder)
    backend = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    load_detokenizer(engine_folder)
    lines = [*_check_ids(checkpoint, tokenizer, backend)]
    lines += _check_splitting(checkpoint, tokenizer, backend)
    template_lines, markers = _check_templates(checkpoint, engine_folder, tokenizer, backend)
    lines += template_lines
    try:
        read_vocabulary(folder / TOKENIZER_FILE, checkpoint.model.vocab_size)
    except CheckpointError as error:
        lines.append(("guides", f"none, requests that ask for one are refused: {error}"))
    return TextFindings(tuple(lines), markers)


def _load(checkpoint: ModelFolder, folder: Path) -> Any:
    try:
        return open_tokenizer(folder)
    except ArtifactError as error:
        said = " ".join(str(error.__cause__ or error).replace(str(folder), str(checkpoint.folder)).split())
    config = checkpoint.tokenizer_files.config
    own_code = config.values.get("auto_map")
    if own_code:
        advice = (
            f"its class is code of the checkpoint (auto_map = {own_code}), which is never run; if {TOKENIZER_FILE} is "
            'all there is to it, remove auto_map and set tokenizer_class to "PreTrainedTokenizerFast"'
        )
    else:
        advice = f"repair the tokenizer's files; tokenizer_class = {config.values.get('tokenizer_class')!r}"
    raise CheckpointError(
        f"{checkpoint.folder / CONFIG_FILE}: transformers cannot load the tokenizer as serving does: {advice}. "
        f"transformers says: {said}"
    )


def _check_ids(checkpoint: ModelFolder, tokenizer: Any, backend: Tokenizer) -> Iterator[Line]:
    """Compare the ids of the tokenizer for prompts, of the tokenizer for answers, and of the network."""
    vocab_size = checkpoint.model.vocab_size
    encoding: Mapping[str, int] = tokenizer.get_vocab()
    decoding = backend.get_vocab(with_added_tokens=True)
    for token, token_id in encoding.items():
        if decoding.get(token, token_id) != token_id:
            raise CheckpointError(
                f"{checkpoint.folder / CONFIG_FILE}: with it {token!r} is token {token_id}, but {decoding[token]} in "
                f"{TOKENIZER_FILE}; prompts and answers would not be of one tokenizer; save it again with transformers"
            )
    base = backend.get_vocab(with_added_tokens=False)
    # Added tokens may repeat tokens of the vocabulary, and are what is beyond the network in checkpoints that work.
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    beyond = [token for token, token_id in base.items() if token_id >= vocab_size and token not in added]
    if beyond:
        raise CheckpointError(
            f"{TOKENIZER_FILE}: has {len(base)} tokens, but the network's vocabulary (config.json: vocab_size) is "
            f"{vocab_size}: {beyond[0]!r} has id {base[beyond[0]]}; it is another model's tokenizer"
        )
    unserved = sorted((token_id, token) for token, token_id in encoding.items() if token_id >= vocab_size)
    if unserved:
        named = ", ".join(f"{token_id} {token!r}" for token_id, token in unserved[:_MAX_NAMED])
        more = f" and {len(unserved) - _MAX_NAMED} more" if len(unserved) > _MAX_NAMED else ""
        yield (
            "warning",
            f"tokens beyond the network's vocabulary of {vocab_size}: {named}{more}; prompts with them are refused",
        )


def _check_splitting(checkpoint: ModelFolder, tokenizer: Any, backend: Tokenizer) -> Iterator[Line]:
    """Warn where a class of transformers splits text by its own rules and not by those of tokenizer.json."""
    for text in _PROBES:
        served = tokenizer(text, add_special_tokens=False)["input_ids"]
        if served != backend.encode(text, add_special_tokens=False).ids:
            name = checkpoint.tokenizer_files.config.values.get("tokenizer_class")
            yield (
                "warning",
                f"tokenizer_class {name!r} splits {text!r} otherwise than {TOKENIZER_FILE} does, and prompts are split "
                f"as the class has it; if the model was trained by {TOKENIZER_FILE}, set tokenizer_class to "
                f'"PreTrainedTokenizerFast" in {CONFIG_FILE}',
            )
            return


def _check_templates(
    checkpoint: ModelFolder, engine_folder: Path, tokenizer: Any, backend: Tokenizer
) -> tuple[list[Line], OutputMarkers]:
    source = checkpoint.tokenizer_files.template_source
    renderer = TemplateRenderer(tokenizer)
    if not renderer.templates:
        write_template_profiles(engine_folder)
        return [("template", "none: requests with messages are refused, text_input is served")], OutputMarkers()
    limit = TimeLimit(_MAX_SECONDS)
    try:
        write_template_profiles(engine_folder)
        findings = limit.run(lambda: find_out(renderer, backend))
        profiles = read_profiles(engine_folder)
        markers = limit.run(lambda: find_markers(renderer, profiles, backend, checkpoint.model.vocab_size))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}; mend the template, or remove it to serve text_input alone") from None
    except TimeLimitError:
        raise CheckpointError(f"{source}: takes more than {_MAX_SECONDS} s for a few messages") from None
    if findings is None:
        names = ", ".join(sorted(renderer.templates))
        return [("template", f"{names}, and no default: messages without tools are refused")], markers
    lines = [("template", f"{source}: {_roles(findings)}"), *_end_of_turn(checkpoint, findings)]
    return [*lines, *_markers(markers)], markers


def _markers(markers: OutputMarkers) -> Iterator[Line]:
    if markers.tool_format is not None:
        yield "tools", f"calls are written as {markers.tool_format.value} has it"
    elif markers.takes_tools:
        yield "tools", "the template takes tools, but the form of its calls is not known: the gateway refuses tools"
    if markers.reasoning is not None:
        yield "reasoning", f"from {markers.reasoning.start.text} to {markers.reasoning.end.text}"


def _roles(findings: TemplateFindings) -> str:
    text = "renders system, user and assistant" if not findings.refused else "renders a conversation, but "
    return text + "; ".join(f"refuses {what} ({said})" for what, said in findings.refused.items())


def _end_of_turn(checkpoint: ModelFolder, findings: TemplateFindings) -> Iterator[Line]:
    ends = checkpoint.end_of_text
    if findings.end_of_turn is not None:
        token_id, text = findings.end_of_turn
        if token_id >= checkpoint.model.vocab_size:
            yield "warning", f"the chat template ends a turn with {token_id} {text!r}, which the network does not have"
        elif token_id not in ends.ids:
            yield (
                "warning",
                f"the chat template ends an answer with {token_id} {text!r}, which is not an end of text: answers may "
                f"run on past their end. If the model was trained with this template, add {token_id} to eos_token_id "
                f"in generation_config.json and build again; until then, send end_id = {token_id} or stop strings",
            )
    elif findings.after_answer:
        yield (
            "warning",
            f"the chat template ends an answer with {findings.after_answer!r}, which is not a token of its own: "
            "if answers run on past it, send it as a stop string",
        )
