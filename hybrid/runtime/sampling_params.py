"""`SamplingParams`: how a text is continued, as a user asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hybrid.runtime.grammar import Grammar
from profiler.artifacts import UserError

MOST_STOPS, LONGEST_STOP = 16, 1024  # strings, and characters of one
MOST_BIASES = 10_000
MOST_ALTERNATIVES = 20  # as OpenAI's protocol has it
MOST_CHOICES = 128


@dataclass(frozen=True)
class SamplingParams:
    """How a text is continued.

    What is done to the model's logits, in this order: the grammar leaves only tokens that may follow;
    `repetition_penalty`, `frequency_penalty` and `presence_penalty`, then `logit_bias`; `temperature`; `top_k`; `top_p`
    of what is left; `min_p`.

    max_tokens: at most so many new tokens. temperature: 0 takes the likeliest token; 1 samples the model's own
    distribution. top_k: only the k likeliest tokens; 0 is all. top_p: only the fewest tokens whose probabilities reach
    p (nucleus sampling, Holtzman et al., 2020). min_p: only tokens at least p times as likely as the likeliest (Nguyen
    et al., 2024). repetition_penalty: logits of tokens of prompt or output are divided by it where they are positive,
    else multiplied by it (CTRL, Keskar et al., 2019, section 4.1); 1 is none. presence_penalty, frequency_penalty:
    subtracted from a token's logit if the output has it, and once for each time that the output has it. logit_bias:
    added to logits, -100 to 100 by token id. seed: repeats a text; None draws another one each time. n: so many
    texts, each with a random stream of its own. stop: strings that end the text and are not part of it. ignore_eos: go
    on after an end-of-sequence token. logprobs: each token's log probability is kept, with so many of the likeliest
    (0 to 20), by the model's own distribution before all of the above. grammar: what the text must be; it ends where
    the grammar does, whatever ignore_eos says.

    Raises:
        UserError: one of them makes no sense; the message names it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    n: int = 1
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _require_whole("max_tokens", self.max_tokens, 1)
        _require_whole("top_k", self.top_k, 0)
        _require_whole("n", self.n, 1, MOST_CHOICES)
        if self.seed is not None:
            _require_whole("seed", self.seed, 0, (1 << 64) - 1)
        if self.logprobs is not None:
            _require_whole("logprobs", self.logprobs, 0, MOST_ALTERNATIVES)
        _require_number("temperature", self.temperature, 0, 100, " (0 takes always the likeliest)")
        _require_number("min_p", self.min_p, 0, 1)
        _require_number("repetition_penalty", self.repetition_penalty, 0.01, 100, " (1 is none)")
        _require_number("presence_penalty", self.presence_penalty, -2, 2)
        _require_number("frequency_penalty", self.frequency_penalty, -2, 2)
        if not _is_number(self.top_p, 0, 1) or self.top_p == 0:
            raise UserError(f"top_p is {_shown(self.top_p)}; a number above 0 and at most 1 is meant")
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"ignore_eos is {_shown(self.ignore_eos)}; true or false is meant")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise UserError(f"grammar is a {type(self.grammar).__name__}; a Grammar is meant")
        self._check_stop()
        object.__setattr__(self, "logit_bias", _checked_biases(self.logit_bias))  # and nobody changes it from now on

    def check_vocabulary(self, size: int) -> None:
        """Refuse what a model of so many tokens does not have.

        Raises:
            UserError: `logit_bias` names a token beyond.
        """
        beyond = max(self.logit_bias, default=0)
        if beyond >= size:
            raise UserError(f"logit_bias names token {beyond}: the model's vocabulary has ids 0 to {size - 1}")

    def _check_stop(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise UserError(f"stop is {_shown(self.stop)}; a tuple of strings, none of them empty, is meant")
        if len(self.stop) > MOST_STOPS or any(len(s) > LONGEST_STOP for s in self.stop):
            raise UserError(f"stop has at most {MOST_STOPS} strings of up to {LONGEST_STOP} characters")


def _checked_biases(biases: object) -> dict[int, float]:
    if not isinstance(biases, Mapping) or len(biases) > MOST_BIASES:
        raise UserError(f"logit_bias gives a number for each of at most {MOST_BIASES} token ids")
    for token_id, bias in biases.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise UserError(f"logit_bias has {token_id!r} for a token id; a whole number from 0 up is meant")
        _require_number(f"logit_bias of token {token_id}", bias, -100, 100)
    return dict(biases)


def _is_number(value: object, lowest: float, highest: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and lowest <= value <= highest


def _require_number(name: str, value: object, lowest: float, highest: float, meaning: str = "") -> None:
    if not _is_number(value, lowest, highest):
        raise UserError(f"{name} is {_shown(value)}; a number from {lowest} to {highest}{meaning} is meant")


def _require_whole(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < lowest or (highest is not None and value > highest):  # type: ignore[operator]
        above = "up" if highest is None else f"to {highest}"
        raise UserError(f"{name} is {_shown(value)}; a whole number from {lowest} {above} is meant")


def _shown(value: object) -> str:
    return "far too large" if isinstance(value, int) and value.bit_length() > 256 else repr(value)[:100]
