"""The probing of chat templates: known conversations are rendered, and their prompts show what a template takes.

Owns these conversations and the conclusions from their prompts. Runs when an engine is built. Never sees a client's
message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, CheckpointError
from trident_preprocessing.chat.template_profile import ROLES, ContentForm, NullForm, TemplateProfile, write_profiles
from trident_preprocessing.chat.template_renderer import Message, RenderError, TemplateRenderer
from trident_preprocessing.chat.time_limit import TimeLimit, TimeLimitError
from trident_preprocessing.tokens.checkpoint_tokenizer import open_tokenizer

#: Words that no template has. They are only letters and digits, so that they are found trimmed, escaped or quoted.
_FIRST, _SECOND, _NAME, _VALUE = "tridentprobefirst", "tridentprobesecond", "tridentprobename", "tridentprobevalue"
#: A key that no template reads; in the prompt it shows that the object around it was printed whole.
_UNREAD = "tridentprobeunread"
_NO_ROLE = "tridentproberole"
#: Mistral's templates insist on ids of nine letters and digits.
_CALL_ID = "tridentp0"
_MAX_SECONDS = 30


def write_template_profiles(engine_folder: Path) -> None:
    """Load an engine's tokenizer as serving does, and write the profiles of its chat templates beside it.

    Raises:
        CheckpointError: the tokenizer cannot be loaded, or a template renders no conversation.
    """
    write_profiles(engine_folder, probe_template(engine_folder / layout.TOKENIZER_FOLDER))


def probe_template(folder: Path) -> dict[str, TemplateProfile]:
    """Return the profiles of a tokenizer's templates by their names; none for a checkpoint without templates.

    Args:
        folder: the folder of the tokenizer.

    Raises:
        CheckpointError: the tokenizer cannot be loaded, or a template renders no ordinary conversation or takes too
            long for one. The message has that of transformers or of the template.
    """
    try:
        renderer = TemplateRenderer(open_tokenizer(folder))
    except ArtifactError as error:
        raise CheckpointError(f"the tokenizer cannot be served: {error}") from None
    try:
        return TimeLimit(_MAX_SECONDS).run(lambda: _checked(renderer))
    except TimeLimitError:
        raise CheckpointError(f"the chat template takes more than {_MAX_SECONDS} s for a few messages") from None


def _checked(renderer: TemplateRenderer) -> dict[str, TemplateProfile]:
    for name in renderer.templates:
        problems: list[str] = []
        for messages in _ordinary():
            try:
                renderer.render(name, messages, add_generation_prompt=True)
                break
            except RenderError as error:
                problems.append(str(error))
        else:
            raise CheckpointError(
                f"the chat template ({name}) renders no conversation, not even one message: {problems[0]}"
            )
    return probe_profiles(renderer)


def probe_profiles(renderer: TemplateRenderer) -> dict[str, TemplateProfile]:
    """Return the profile of each template; a template that renders nothing gets what most templates take."""
    return {name: _Probe(renderer, name).profile() for name in renderer.templates}


def _ordinary() -> Iterator[list[Message]]:
    user, system = _message("user", _FIRST), _message("system", _SECOND)
    yield [user]
    yield [system, user]
    yield [_message("user", _parts(_FIRST))]
    yield [user, _message("assistant", _SECOND), user]


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text, _UNREAD: _UNREAD} for text in texts]


class _Probe:
    """The probing of one template."""

    def __init__(self, renderer: TemplateRenderer, name: str) -> None:
        self._renderer = renderer
        self._name = name
        self._prompts: list[str] = []

    def profile(self) -> TemplateProfile:
        content = {role: self._content_form(role) for role in ROLES if role != "tool"}
        asked = _message("user", _put("tridentprobeuser", content["user"]))
        as_text, null_content, empty_is_null = self._history_forms(asked)
        content["tool"] = self._tool_content_form(asked, as_text, null_content)
        return TemplateProfile(
            content=content,
            null_content=null_content,
            empty_is_null=empty_is_null,
            arguments_as_text=as_text,
            takes_developer=self._takes_developer(asked),
            written=self._written(),
        )

    def _render(self, messages: list[Message], tools: Any = None) -> str:
        """Return the prompt, or an empty text where the template refuses."""
        try:
            prompt = self._renderer.render(self._name, messages, tools, add_generation_prompt=True)
        except RenderError:
            return ""
        self._prompts.append(prompt)
        return prompt

    def _written(self) -> tuple[str, ...]:
        """Return the added tokens that the template writes, as they are or put together from pieces and a role."""
        texts = "\0".join([self._renderer.templates[self._name], *self._prompts])
        return tuple(token for token in self._renderer.added_tokens if token in texts and not token.isspace())

    def _content_form(self, role: str) -> ContentForm:
        def conversation(content: Any) -> list[Message]:
            probed = _message(role, content)
            if role == "user":
                return [probed]
            # A template that only takes parts ignores this text, which only makes the conversation a valid one.
            user = _message("user", "tridentprobeuser")
            return [user, probed, user] if role == "assistant" else [probed, user]

        return _form(self._render(conversation(_FIRST)), self._render(conversation(_parts(_FIRST, _SECOND))))

    def _takes_developer(self, asked: Message) -> bool:
        """Return whether the role `developer` is rendered, and in another way than an unknown role."""
        known = self._render([_message("developer", _SECOND), asked])
        unknown = self._render([_message(_NO_ROLE, _SECOND), asked])
        return _SECOND in known and known.replace("developer", _NO_ROLE) != unknown

    def _history_forms(self, asked: Message) -> tuple[bool, NullForm, bool]:
        """Return whether arguments are text, the form of no content, and whether an empty text takes that form too.

        A template that takes no calls at all gets what most templates take.
        """
        text = json.dumps({_NAME: _VALUE})
        prompts = {
            (as_text, null): self._render([asked, _call(text if as_text else {_NAME: _VALUE}, null)])
            for as_text in (False, True)
            for null in NullForm
        }
        of_objects = [prompt for (as_text, _), prompt in prompts.items() if not as_text and _takes_object(prompt)]
        of_texts = [prompt for (as_text, _), prompt in prompts.items() if as_text and text in prompt]
        as_text = bool(of_texts) and not of_objects
        rendered = {null: prompts[as_text, null] for null in NullForm if prompts[as_text, null]}
        # If the template leaves out all calls, the rest of its prompts is still worth comparing.
        rendered = {null: prompt for null, prompt in rendered.items() if _VALUE in prompt} or rendered
        # A template that does not expect None writes the word.
        fewest = min((prompt.count("None") for prompt in rendered.values()), default=0)
        best = next((null for null, prompt in rendered.items() if prompt.count("None") == fewest), NullForm.NONE)
        return as_text, best, _VALUE in prompts[as_text, best] and _VALUE not in prompts[as_text, NullForm.EMPTY]

    def _tool_content_form(self, asked: Message, as_text: bool, null: NullForm) -> ContentForm:
        arguments = json.dumps({_NAME: _VALUE}) if as_text else {_NAME: _VALUE}
        as_one, as_parts = (
            self._render([asked, _call(arguments, null), _result(content)])
            for content in (_FIRST, _parts(_FIRST, _SECOND))
        )
        return _form(as_one, as_parts)


def _put(text: str, form: ContentForm) -> Any:
    return [{"type": "text", "text": text}] if form is ContentForm.PARTS else text


def _form(of_text: str, of_parts: str) -> ContentForm:
    takes_text = _FIRST in of_text
    takes_parts = _FIRST in of_parts and _SECOND in of_parts and _UNREAD not in of_parts
    if takes_parts:
        return ContentForm.EITHER if takes_text else ContentForm.PARTS
    return ContentForm.TEXT


def _call(arguments: Any, null: NullForm) -> Message:
    function = {"name": "tridentprobefunction", "arguments": arguments}
    calls = [{"id": _CALL_ID, "type": "function", "function": function}]
    answer: Message = {"role": "assistant", "content": None if null is NullForm.NONE else "", "tool_calls": calls}
    if null is NullForm.ABSENT:
        del answer["content"]
    return answer


def _result(content: Any) -> Message:
    return {"role": "tool", "tool_call_id": _CALL_ID, "name": "tridentprobefunction", "content": content}


def _takes_object(prompt: str) -> bool:
    """Return whether the members of an object are in the prompt, and not as Python prints a whole object."""
    return _NAME in prompt and _VALUE in prompt and f"'{_NAME}'" not in prompt
