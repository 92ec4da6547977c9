"""Requests as clients write them, field by field. What is not here is refused by name (`validation.py`).

Fields that OpenAI's clients send and that change nothing here are taken and ignored, as long as they ask for nothing
else: `user`, `metadata`, `store: false`, `tools: []` and the like.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Whole = Annotated[int, Field(ge=1)]
Chance = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Strict(BaseModel):
    """JSON of exactly these fields and types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(Strict):
    """What a stream has beside its pieces. `include_usage`: a last chunk with the counts of tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Strict):
    """A schema that the answer obeys; always strictly, whatever `strict` says."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """One JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class GenerationRequest(Strict):
    """What chats and completions have in common. A field that is null is as one that is left out.

    temperature, top_p, top_k, min_p, repetition_penalty: the model's own where its files recommend some, else OpenAI's
    defaults. grammar: in llguidance's Lark; regex: a regular expression; of these and response_format only one.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Whole | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Chance | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Chance | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=1024),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=8)] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


def _kind_of_prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    kinds: dict[type, str] = {str: "texts", int: "ids", list: "many ids"}
    return kinds.get(type(value[0])) if isinstance(value, list) and value else None


Ids = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(max_length=256), Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], Field(max_length=256), Tag("many ids")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="A text, a list of texts, a list of token ids, or a list of such lists is meant",
    ),
]


class CompletionRequest(GenerationRequest):
    """A text to continue, or several: texts, or token ids as they are.

    logprobs: so many of the likeliest tokens at each place. echo: the answer begins with the prompt.
    """

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt, a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        one = [value for value in self.prompt if isinstance(value, int)]
        return [one] if one else [value for value in self.prompt if not isinstance(value, int)]


class TextPart(Strict):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(Strict):
    """What the model is told before a conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Strict):
    """What a person says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Strict):
    """The function that was called; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call that an assistant made earlier."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Strict):
    """What the model, or another one, answered earlier."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Nothing | None = None


class ToolMessage(Strict):
    """What a tool gave back."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class ChatRequest(GenerationRequest):
    """A conversation to answer.

    max_completion_tokens: the newer name of max_tokens. logprobs: those of the tokens are told, with `top_logprobs` of
    the likeliest ones at each place.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=8192)]
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None


class TokenizeRequest(Strict):
    """A text, or a conversation as the model would be shown it; one of both."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=8192)] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Strict):
    """Token ids whose text is asked for."""

    model: str | None = None
    tokens: list[TokenId]
