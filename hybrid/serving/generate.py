"""From a request's fields to sequences and the reply that they are sent with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio.to_thread
from starlette.responses import Response

from hybrid.runtime.grammar import Grammar, GrammarError
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.errors import invalid
from hybrid.serving.protocol import GenerationRequest, JsonObjectFormat, JsonSchemaFormat
from hybrid.serving.reply import WholeReply, check_count
from hybrid.serving.served import ServedModel
from hybrid.serving.service import EngineService
from hybrid.serving.settings import ServeSettings
from hybrid.serving.shape import Shape
from hybrid.serving.streaming import StreamReply
from profiler.artifacts import UserError

Result = TypeVar("Result")
PREPARING = 2  # threads that render and tokenize at once: more would only wait for each other
LEAST_TOP_P = 1e-9  # what 0 means: the likeliest token alone


class Generator:
    """What endpoints generate with."""

    def __init__(self, service: EngineService, served: ServedModel, settings: ServeSettings) -> None:
        self.service, self.served, self.settings = service, served, settings
        self._limiter: anyio.CapacityLimiter | None = None

    async def prepare(self, work: Callable[[], Result]) -> Result:
        """Do what takes long for a long prompt, beside the event loop."""
        if self._limiter is None:  # it belongs to a loop
            self._limiter = anyio.CapacityLimiter(PREPARING)
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    def sequences(
        self, body: GenerationRequest, prompts: Sequence[list[int]], params: SamplingParams, param: str
    ) -> list[TokenSequence]:
        """`n` sequences for every prompt, those of a prompt one after the other.

        Raises:
            ApiError: a prompt does not fit (`param` is the field that it came in), or a grammar cannot be used.
            UserError: a file of the model was cut or grown since it was opened.
        """
        for ids in prompts:
            self.served.check_prompt(ids, param)
        check_count(self.service, len(prompts) * (body.n or 1))
        tokenizer = self.served.tokenizer
        try:
            made = [TokenSequence(ids, params, tokenizer, index) for ids in prompts for index in range(body.n or 1)]
        except GrammarError as error:
            raise invalid(str(error), _form(body)) from error
        self.service.engine.check(made[0])
        return made

    def reply(self, body: GenerationRequest, sequences: list[TokenSequence], shape: Shape) -> Response:
        """Whole, or as a stream."""
        if not body.stream:
            return WholeReply(self.service, sequences, shape)
        return StreamReply(self.service, sequences, shape, body.include_usage, self.settings.keep_alive_seconds)


def sampling_params(
    body: GenerationRequest, served: ServedModel, max_tokens: int, stop: tuple[str, ...], logprobs: int | None
) -> SamplingParams:
    """How a request is sampled: its own fields, else the model's defaults.

    Raises:
        ApiError: a field makes no sense for this model, or two say what form the answer has; it names one.
    """
    chosen = {
        name: default if (value := getattr(body, name)) is None else value for name, default in served.defaults.items()
    }
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=float(chosen["temperature"]),
        top_p=max(float(chosen["top_p"]), LEAST_TOP_P),
        top_k=max(0, chosen["top_k"]),
        min_p=float(chosen["min_p"]),
        repetition_penalty=float(chosen["repetition_penalty"]),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias={int(token_id): bias for token_id, bias in (body.logit_bias or {}).items()},
        seed=None if body.seed is None else body.seed % 2**64,
        stop=stop,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        grammar=_grammar(body),
    )
    try:
        params.check_vocabulary(served.vocab_size)
    except UserError as error:
        raise invalid(str(error), "logit_bias") from error
    return params


def _form(body: GenerationRequest) -> str | None:
    """The field that says what form the answer has."""
    given = [name for name in ("response_format", "grammar", "regex") if getattr(body, name) is not None]
    if len(given) > 1:
        raise invalid(f"{given[1]} and {given[0]} both say what form the answer has; give one", given[1])
    return given[0] if given else None


def _grammar(body: GenerationRequest) -> Grammar | None:
    field, form = _form(body), body.response_format
    try:
        if body.regex is not None:
            return Grammar("regex", body.regex)
        if body.grammar is not None:
            return Grammar("lark", body.grammar)
        if isinstance(form, JsonObjectFormat):
            return Grammar("json_object")
        if isinstance(form, JsonSchemaFormat):
            return Grammar("json_schema", json.dumps(form.json_schema.schema_))
    except UserError as error:
        raise invalid(str(error), field) from error
    return None
