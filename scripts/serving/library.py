"""Requests through `LLM.generate`, and a decode step's time by operator."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.floor import floor_bytes

from hybrid import LLM, SamplingParams
from serving.prompts import Prompts


@dataclass(frozen=True)
class Settings:
    """What every request asks for: a prompt of so many tokens, and so many generated, to the last one."""

    prompt: int
    tokens: int
    rounds: int
    threads: int

    @property
    def context(self) -> int:
        """Tokens that a request has room for; prompts may be a few longer than asked."""
        return -(-(self.prompt + self.tokens + 32) // 64) * 64

    @property
    def params(self) -> SamplingParams:
        """Greedy, and past the end of a text."""
        return SamplingParams(max_tokens=self.tokens, ignore_eos=True)


@dataclass
class Together:
    """Figures of so many requests at once, a value per round.

    rate: generated tokens per second of the whole call, prompts included. decode_rate: tokens per second of the time
    that decoding took. operators: milliseconds of native operators per generated token of all, by kind.
    """

    rate: list[float] = field(default_factory=list)
    decode_rate: list[float] = field(default_factory=list)
    operators: list[dict[str, float]] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "rate": self.rate,
            "decode_rate": self.decode_rate,
            "operators": self.operators,
            "outside": self.outside,
        }


def opened(path: Path, mode: str, slots: int, settings: Settings) -> LLM:
    """The model, for so many requests at once."""
    return LLM(
        path, mode=mode, context=settings.context, max_sequences=slots, threads=settings.threads, vram=0, note=_silent
    )


def generate(llm: LLM, prompts: Sequence[str], settings: Settings, into: Together | None = None) -> float:
    """Seconds that a call takes; its figures go to `into`."""
    engine = llm._engine
    decode, recorded = engine.ledger.decode, engine.machine.recorded
    assert recorded is not None, "all of the model is in host memory"
    tokens, seconds, kinds = decode.tokens, decode.seconds, recorded.seconds()
    began = time.perf_counter()
    completions = llm.generate(list(prompts), settings.params)
    elapsed = time.perf_counter() - began
    generated = sum(len(completion.token_ids) for completion in completions)
    if into is not None:
        after = recorded.seconds()
        into.rate.append(generated / elapsed)
        into.decode_rate.append((decode.tokens - tokens) / (decode.seconds - seconds))
        into.operators.append({kind: 1e3 * (after[kind] - kinds[kind]) / generated for kind in after})
        into.outside.append(1e3 * (elapsed - sum(after.values()) + sum(kinds.values())) / generated)
    return elapsed


def warm_up(llm: LLM, prompts: Prompts, count: int, settings: Settings) -> None:
    """Calls until all weights and all room for keys and values were in use once, as in a server's first minutes: memory
    that nothing used yet is given, and cleared, page by page.
    """
    pages = llm._engine.pages
    while True:
        generate(llm, [prompts.text(settings.prompt) for _ in range(count)], settings)
        if pages.touched == pages.total:
            return


def batching(
    path: Path, mode: str, counts: Sequence[int], settings: Settings, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Requests together, by how many, in turn; prompts are new each time."""
    figures = {count: Together() for count in counts}
    with opened(path, mode, max(counts), settings) as llm:
        prompts = Prompts(llm.tokenizer, llm.tokenizer.vocab_size)
        warm_up(llm, prompts, max(counts), settings)
        for turn in range(settings.rounds):
            for count in counts if turn % 2 == 0 else reversed(counts):
                generate(llm, [prompts.text(settings.prompt) for _ in range(count)], settings, figures[count])
            shown = ", ".join(f"{count}: {figures[count].rate[-1]:.1f}" for count in counts)
            tell(f"{path.name}, {mode}, round {turn + 1} of {settings.rounds}, tokens/s by requests: {shown}")
    needed = floor_bytes(path, mode, 0.1, settings.prompt + settings.tokens / 2)
    return {"together": {str(count): of.as_json() for count, of in figures.items()}, "bytes_of_one": needed}


def _silent(line: str) -> None:
    pass
