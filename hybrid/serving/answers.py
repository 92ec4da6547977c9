"""Answers as /openapi.json describes them. They are written as plain JSON where they are made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class ErrorObject(BaseModel):
    """What went wrong; `param` is the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An error."""

    error: ErrorObject


class PromptTokens(BaseModel):
    """Of a prompt's tokens, those that were found in pages that earlier requests computed."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Likely(BaseModel):
    """A token and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Likely):
    """A token that was taken, and the likeliest ones at its place."""

    top_logprobs: list[Likely]


class ChatLogprobs(BaseModel):
    """Those of a message."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(BaseModel):
    """Those of a text; offsets are characters of what was generated."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer to a conversation."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One continuation of a text."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class Completion(BaseModel):
    """Continuations of texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class ModelObject(BaseModel):
    """A model that is served; `max_model_len` is its context in tokens, prompt and answer together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    """All that are served."""

    object: Literal["list"]
    data: list[ModelObject]


class Tokens(BaseModel):
    """Token ids, how many, and how many the context holds."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(BaseModel):
    """The text of token ids."""

    prompt: str


class Health(BaseModel):
    """Whether requests are taken: `ok`, `draining` (the server was told to stop) or `failed` (and why)."""

    status: Literal["ok", "draining", "failed"]
    message: str | None


def responses(answer: type[BaseModel], stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """What an endpoint may answer, for its description."""
    content: dict[str, Any] = {"text/event-stream": {}} if stream else {}
    told: dict[int | str, dict[str, Any]] = {200: {"model": answer, "content": content}}
    meanings = {
        400: "The request is wrong",
        404: "No such model",
        500: "The engine failed",
        503: "The server is stopping",
    }
    if stream:
        meanings[429] = "The queue is full; Retry-After says when to come back"
    for status, description in meanings.items():
        told[status] = {"model": ErrorAnswer, "description": description}
    return told
