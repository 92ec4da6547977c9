"""Chat templates: messages to the text that a model was tuned on, as transformers renders it.

A template is code of others: it runs in jinja2's sandbox, sees only the messages and the names of special tokens, and
what it may give out is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hybrid.tokenizer_settings import read_optional, read_settings
from profiler.artifacts import UserError, format_size

TEMPLATE_LIMIT = 1 << 20  # bytes of a template
RENDERED_LIMIT = 64 << 20  # characters that one conversation may become
DEFAULT, WITH_TOOLS = "default", "tool_use"
Message = Mapping[str, Any]


class ChatTemplate:
    """The compiled templates of one model.

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
        self._words = "\n".join(sources.values())
        environment = _environment()
        try:
            self._templates = {name: environment.from_string(source) for name, source in sources.items()}
        except (jinja2.TemplateError, RecursionError) as error:
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
            UserError: the template refuses these messages, fails, or gives out more than 64 Mi characters.
        """
        template = self._templates[WITH_TOOLS if tools is not None and WITH_TOOLS in self._templates else DEFAULT]
        values = {"messages": messages, "tools": tools, "documents": None}
        parts, length = [], 0
        try:
            for part in template.generate(**values, add_generation_prompt=add_generation_prompt, **self._special):
                length += len(part)
                if length > RENDERED_LIMIT:
                    raise UserError(f"the chat template in {self._origin} makes over {format_size(RENDERED_LIMIT)}")
                parts.append(part)
        except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"the chat template in {self._origin} refuses this conversation: {error}") from error
        return "".join(parts)


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


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up, so that a template means the same here as there."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's words for training: here its content, as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
