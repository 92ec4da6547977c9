"""POST /v1/completions: a text is continued."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Send

from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.errors import JsonResponse
from hybrid.serving.protocol import CompletionRequest
from hybrid.serving.reply import Reply, failure_of
from hybrid.serving.service import EngineService
from hybrid.serving.ticket import Ticket


def completions_router(service: EngineService) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(body: CompletionRequest) -> Response:
        sequences = await run_in_threadpool(_sequences, service, body)
        return CompletionReply(service, sequences, body)

    return router


class CompletionReply(Reply):
    """All of the answer at once."""

    def __init__(self, service: EngineService, sequences: list[TokenSequence], body: CompletionRequest) -> None:
        super().__init__(service, sequences)
        self.request = body

    async def answer(self, ticket: Ticket, send: Send) -> None:
        """See `Reply`."""
        await ticket.end()
        if ticket.cancelled:
            return
        if ticket.failure is not None:
            raise failure_of(ticket)
        prompt = sum(len(sequence.prompt_ids) for sequence in ticket.sequences)
        output = sum(state.tokens for state in ticket.states)
        response = JsonResponse(
            {
                "id": f"cmpl-{uuid.uuid4().hex}",
                "object": "text_completion",
                "created": int(time.time()),
                "model": self.request.model,
                "choices": [
                    {"index": i, "text": state.text, "logprobs": None, "finish_reason": state.finish_reason}
                    for i, state in enumerate(ticket.states)
                ],
                "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
            }
        )
        await response({"type": "http"}, _never, send)


async def _never() -> dict[str, str]:
    raise AssertionError("a body that is known needs nothing of the client")


def _sequences(service: EngineService, body: CompletionRequest) -> list[TokenSequence]:
    params = SamplingParams(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        stop=tuple([body.stop] if isinstance(body.stop, str) else body.stop or ()),
    )
    tokenizer = service.engine.tokenizer
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    sequences = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        assert isinstance(ids, list)
        sequences.append(TokenSequence(ids, params, tokenizer))
        service.engine.check(sequences[-1])
    return sequences
