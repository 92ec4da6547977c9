"""POST /v1/completions: texts are continued."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.answers import Completion, responses
from hybrid.serving.errors import invalid
from hybrid.serving.generate import Generator, sampling_params
from hybrid.serving.logprobs import TextOffsets, legacy_logprobs
from hybrid.serving.protocol import CompletionRequest
from hybrid.serving.served import ServedModel
from hybrid.serving.shape import Json, Shape
from hybrid.serving.ticket import State

DEFAULT_TOKENS = 16  # OpenAI's


def completions_router(generator: Generator) -> APIRouter:
    """The endpoint."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/completions", responses=responses(Completion, stream=True))
    async def complete(body: CompletionRequest) -> Response:
        """Continue a text, or several."""
        generator.served.require(body.model)
        sequences = await generator.prepare(lambda: _sequences(generator, body))
        return generator.reply(body, sequences, CompletionShape(generator.served, body))

    return router


class CompletionShape(Shape):
    """Texts."""

    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def __init__(self, served: ServedModel, body: CompletionRequest) -> None:
        super().__init__(served, body.model, body.n or 1, body.logprobs is not None)
        decode = served.tokenizer.decode
        prompts = body.prompts if body.echo else []
        self._offsets: dict[int, TextOffsets] = {}
        self._echo = [prompt if isinstance(prompt, str) else decode(prompt) for prompt in prompts]

    def choice(self, index: int, sequence: TokenSequence, state: State) -> Json:
        """See `Shape`."""
        text = self._prompt(index) + state.text
        return {**self._piece(index, text, sequence, 0, state.shown), "finish_reason": state.finish_reason}

    def opening(self, index: int, sequence: TokenSequence) -> Json | None:
        """See `Shape`."""
        return self._piece(index, self._prompt(index), sequence, 0, 0) if self._echo else None

    def delta(self, index: int, sequence: TokenSequence, before: State, now: State) -> Json:
        """See `Shape`."""
        return self._piece(index, now.text[len(before.text) :], sequence, before.shown, now.shown)

    def ending(self, index: int, state: State) -> Json:
        """See `Shape`."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": state.finish_reason}

    def _piece(self, index: int, text: str, sequence: TokenSequence, first: int, end: int) -> Json:
        told = None
        if self.with_logprobs:
            offsets = self._offsets.setdefault(index, TextOffsets())
            told = legacy_logprobs(sequence.logprobs[first:end], offsets, self.served.tokenizer)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": None}

    def _prompt(self, index: int) -> str:
        return self._echo[index // self.per_prompt] if self._echo else ""


def _sequences(generator: Generator, body: CompletionRequest) -> list[TokenSequence]:
    if body.echo and body.logprobs is not None:
        raise invalid("echo is not supported with logprobs: those of prompts are not computed", "echo")
    encode = generator.served.encode
    prompts = [encode(prompt, "prompt") if isinstance(prompt, str) else prompt for prompt in body.prompts]
    params = sampling_params(body, generator.served, body.max_tokens or DEFAULT_TOKENS, body.stops, body.logprobs)
    return generator.sequences(body, prompts, params, "prompt")
