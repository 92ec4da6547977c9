"""POST /tokenize and /detokenize: texts to the model's token ids and back."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from hybrid.serving.answers import Text, Tokens, responses
from hybrid.serving.chat import prompt_ids
from hybrid.serving.errors import JsonResponse, invalid
from hybrid.serving.generate import Generator
from hybrid.serving.protocol import DetokenizeRequest, TokenizeRequest


def tokens_router(generator: Generator) -> APIRouter:
    """The endpoints."""
    router, served = APIRouter(tags=["tokens"]), generator.served

    @router.post("/tokenize", responses=responses(Tokens))
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a conversation as the model would be shown it."""
        if body.model is not None:
            served.require(body.model)
        ids = await generator.prepare(lambda: _ids(generator, body))
        return JsonResponse({"tokens": ids, "count": len(ids), "max_model_len": served.context})

    @router.post("/detokenize", responses=responses(Text))
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids, without special tokens."""
        if body.model is not None:
            served.require(body.model)
        if not all(0 <= token_id < served.vocab_size for token_id in body.tokens):
            raise invalid(f"tokens has ids beyond 0 to {served.vocab_size - 1}", "tokens")
        return JsonResponse({"prompt": await generator.prepare(lambda: served.tokenizer.decode(body.tokens))})

    return router


def _ids(generator: Generator, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("give either prompt or messages", "prompt" if body.messages is None else "messages")
    if body.messages is not None:
        return prompt_ids(generator.served, body.messages)
    assert body.prompt is not None
    return generator.served.tokenizer.encode(body.prompt, body.add_special_tokens)
