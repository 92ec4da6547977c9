"""Chat templates: messages to the text that a model was tuned on, as transformers renders it.

A template is code of others: it runs in jinja2's sandbox and in a process of its own, sees only the messages and the
names of special tokens, and its time, its memory and what it may give out are bounded (`template_sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid.template_process import TemplateProcess, TemplateRefused
from hybrid.tokenizer_settings import read_optional, read_settings
from profiler.artifacts import UserError, format_size

TEMPLATE_LIMIT = 1 << 20  # bytes of a template
DEFAULT, WITH_TOOLS = "default", "tool_use"
Message = Mapping[str, Any]


class ChatTemplate:
    """The compiled templates of one model. Any thread may use them; they take turns.

    Args:
        sources: template by name; the one for plain conversations is called `default`.
        special: special tokens by the names under which templates know them (`bos_token` and so on).
        origin: the file, for messages.

    Raises:
        UserError: there is no template for plain conversations, or one that jinja2 cannot read.

    """

    def __init__(self, sources: Mapping[str, str], special: Mapping[str, str], origin: Path) -> None:
        if DEFAULT not in sources:
            raise UserError(f"{origin} has no template named {DEFAULT!r}, only {', '.join(sorted(sources)) or 'none'}")
        self._special, self._origin = dict(special), origin
        self._names = frozenset(sources)
        self._words = "\n".join(sources.values())
        try:
            self._process = TemplateProcess(sources)
        except TemplateRefused as error:
            raise UserError(f"the chat template in {origin} cannot be read: {error}") from error

    def mentions(self, word: str) -> bool:
        """Whether a template has the word: one that does not name a role does not know it."""
        return word in self._words

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, opened and ended by the special tokens that the template writes.

        Args:
            messages: objects with a `role` and mostly a `content`, JSON values throughout.
            add_generation_prompt: end with what opens the assistant's answer.
            tools: JSON schemas of functions that the model may call.

        Raises:
            UserError: the template refuses these messages, fails, computes for more than 5 s, or takes more than 1 GiB
                of memory or 64 Mi characters.
        """
        name = WITH_TOOLS if tools is not None and WITH_TOOLS in self._names else DEFAULT
        values = {"messages": list(messages), "tools": None if tools is None else list(tools), "documents": None}
        try:
            return self._process.render(
                name, {**values, "add_generation_prompt": add_generation_prompt, **self._special}
            )
        except TemplateRefused as error:
            raise UserError(f"the chat template in {self._origin} refuses this conversation: {error}") from error

    def close(self) -> None:
        """End the process in which templates run; it ends with this object too, and starts again when it is needed."""
        self._process.close()


def load_chat_template(directory: Path) -> ChatTemplate | None:
    """The chat template of a checkpoint or a model directory; None where it has none.

    Looked for in chat_template.jinja, then chat_template.json, then tokenizer_config.json, where it is a text or a list
    of named ones.

    Raises:
        UserError: a file is damaged, or the template in it.
    """
    special = read_settings(directory).special_names
    path = directory / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > TEMPLATE_LIMIT:
            raise UserError(f"{path} is {format_size(path.stat().st_size)}; a chat template has at most 1 MiB")
        try:
            return ChatTemplate({DEFAULT: path.read_text(encoding="utf-8")}, special, path)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text; copy it again") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_optional(directory / name).get("chat_template")
        if found is not None:
            return ChatTemplate(_sources(directory / name, found), special, directory / name)
    return None


def _sources(path: Path, value: object) -> dict[str, str]:
    if isinstance(value, str):
        value = {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(v, dict) and {"name", "template"} <= set(v) for v in value):
        value = {v["name"]: v["template"] for v in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in (*value, *value.values())):
        raise UserError(f"{path}: chat_template should be a text, or a list of named ones; copy the file again")
    if sum(map(len, value.values())) > TEMPLATE_LIMIT:
        raise UserError(f"{path}: a chat template has at most 1 MiB")
    return value
