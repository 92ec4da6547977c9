"""POST /v1/chat/completions: conversations are answered."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.answers import ChatCompletion, responses
from hybrid.serving.errors import invalid
from hybrid.serving.generate import Generator, sampling_params
from hybrid.serving.logprobs import chat_logprobs
from hybrid.serving.protocol import AssistantMessage, ChatRequest, Message
from hybrid.serving.served import ServedModel
from hybrid.serving.shape import Json, Shape
from hybrid.serving.ticket import State
from profiler.artifacts import UserError


def chat_router(generator: Generator) -> APIRouter:
    """The endpoint."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/chat/completions", responses=responses(ChatCompletion, stream=True))
    async def chat(body: ChatRequest) -> Response:
        """Answer a conversation."""
        generator.served.require(body.model)
        sequences = await generator.prepare(lambda: _sequences(generator, body))
        return generator.reply(body, sequences, ChatShape(generator.served, body))

    return router


class ChatShape(Shape):
    """Messages of the assistant."""

    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, served: ServedModel, body: ChatRequest) -> None:
        super().__init__(served, body.model, body.n or 1, bool(body.logprobs))

    def choice(self, index: int, sequence: TokenSequence, state: State) -> Json:
        """See `Shape`."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": state.text, "refusal": None},
            "logprobs": self._logprobs(sequence, 0, state.shown),
            "finish_reason": state.finish_reason,
        }

    def opening(self, index: int, sequence: TokenSequence) -> Json | None:
        """See `Shape`."""
        return _piece(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, index: int, sequence: TokenSequence, before: State, now: State) -> Json:
        """See `Shape`."""
        told = self._logprobs(sequence, before.shown, now.shown)
        return _piece(index, {"content": now.text[len(before.text) :]}, told)

    def ending(self, index: int, state: State) -> Json:
        """See `Shape`."""
        return _piece(index, {}, finish_reason=state.finish_reason)

    def _logprobs(self, sequence: TokenSequence, first: int, end: int) -> Json | None:
        return chat_logprobs(sequence.logprobs[first:end], self.served.tokenizer) if self.with_logprobs else None


def _piece(index: int, delta: Json, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _sequences(generator: Generator, body: ChatRequest) -> list[TokenSequence]:
    served = generator.served
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("max_tokens is the older name of max_completion_tokens; give one of them", "max_tokens")
    ids = prompt_ids(served, body.messages)
    limit = body.max_completion_tokens or body.max_tokens or served.context  # where the context ends a text ends
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(body, served, limit, body.stops + served.chat.stop, logprobs)
    return generator.sequences(body, [ids], params, "messages")


def prompt_ids(served: ServedModel, messages: list[Message]) -> list[int]:
    """Token ids of a conversation, up to where the answer begins.

    Raises:
        ApiError: the chat template refuses it.
    """
    plain = [_plain(served, message) for message in messages]
    try:
        served.check_length("".join(map(_words, plain)), "messages")
        return served.chat.encode(served.tokenizer, plain)
    except UserError as error:
        raise invalid(str(error), "messages") from error


def _words(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _plain(served: ServedModel, message: Message) -> dict[str, Any]:
    """A message as templates know it: calls' arguments are values, not text."""
    plain = message.model_dump(exclude_none=True)
    if isinstance(message, AssistantMessage) and message.tool_calls:
        if served.chat.template is None:
            raise invalid("tool_calls need a chat template, and this model has none", "messages")
        for call in plain["tool_calls"]:
            call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return plain


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
