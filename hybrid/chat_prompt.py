"""`ChatFormat`: messages to a prompt, by the model's chat template, or plainly where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid.chat_template import ChatTemplate, Message, load_chat_template
from hybrid.tokenizer import Tokenizer
from profiler.artifacts import UserError

SPEAKERS = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "assistant": "Assistant",
    "tool": "Tool",
    "function": "Tool",
}
PLAIN_STOP = ("\nUser:", "\nSystem:", "\nTool:", "\nAssistant:")


class ChatFormat:
    """How one model is shown a conversation.

    template: the model's own, or None: turns are then written plainly, `User:` or another speaker on a line and the
    words below, an empty line between turns. note: what a user should be warned of when the model is opened, or None.
    stop: strings that end an answer beside the model's end tokens: without a template the model was taught no end, and
    goes on with the next speaker.
    """

    def __init__(self, template: ChatTemplate | None, note: str | None = None) -> None:
        self.template = template
        self.note = note
        self.stop: tuple[str, ...] = PLAIN_STOP if template is None else ()

    @classmethod
    def of(cls, directory: Path) -> ChatFormat:
        """That of a model directory or a checkpoint.

        Raises:
            UserError: its template cannot be read.
        """
        template = load_chat_template(directory)
        if template is not None:
            return cls(template)
        return cls(
            None,
            f"{directory} has no chat template: turns are written plainly, as `User:` and `Assistant:`, and the model "
            "may not answer well; if it was tuned for chats, put its chat_template.jinja into the directory",
        )

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The text of a conversation up to where the assistant's answer begins.

        Args:
            messages: each a `role` and a `content`: a text, None, or a list of parts `{"type": "text", "text": ...}`,
                which are joined by line ends. `developer` is `system` where the template does not know the word.
            tools: JSON schemas of functions, for the template.

        Raises:
            UserError: there are no messages, one is not of this form, or the template refuses them.
        """
        if not messages:
            raise UserError("messages is empty; give at least one")
        plain = [{**message, "content": _text(message.get("content"), at)} for at, message in enumerate(messages)]
        if self.template is not None:
            if not self.template.mentions("developer"):  # OpenAI's newer name for what such templates call system
                plain = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in plain]
            return self.template.render(plain, add_generation_prompt=True, tools=tools)
        if tools:
            raise UserError("tools need a chat template, and this model has none")
        turns = [f"{_speaker(message.get('role'), at)}:\n{message['content']}" for at, message in enumerate(plain)]
        return "\n\n".join([*turns, "Assistant:\n"])

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of `render`: what a template wrote opens itself, plain turns are a text like any other.

        Raises:
            UserError: as `render`, or a message is not valid Unicode.
        """
        text = self.render(messages, tools)
        return tokenizer.encode(text) if self.template is None else tokenizer.encode_chat(text)


def _text(content: object, at: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise UserError(f"messages[{at}].content is neither a text nor a list of parts")
    for place, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type")
            raise UserError(f"messages[{at}].content[{place}] is of type {kind!r}; this engine reads texts only")
    return "\n".join(part["text"] for part in content)


def _speaker(role: object, at: int) -> str:
    if not isinstance(role, str) or role not in SPEAKERS:
        raise UserError(f"messages[{at}].role is {role!r}; one of {', '.join(SPEAKERS)} is meant")
    return SPEAKERS[role]
