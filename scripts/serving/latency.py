"""Time between two tokens of requests that decode, alone and while a long prompt is read beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybrid.runtime.engine import Engine
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.stages.opening import open_engine
from serving.prompts import Prompts

SETTLE = 8  # tokens of each before times are taken
ALONE = 64  # tokens of each whose times are taken before the prompt comes, and again after it: texts have grown by then

ROOM = 512  # tokens of context at least, for what the others write meanwhile


class Watch:
    """Steps an engine and notes when each sequence got a token."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._last: dict[int, float] = {}

    def step(self) -> list[float]:
        """One step; the seconds since the token before, of each sequence that got another one."""
        advanced = self._engine.step()
        now, gaps = time.perf_counter(), []
        for sequence in advanced:
            if (before := self._last.get(id(sequence))) is not None:
                gaps.append(now - before)
            self._last[id(sequence)] = now
        return gaps


def beside_a_prompt(engine: Engine, prompts: Prompts, decoding: int, prompt: int, own_prompt: int) -> dict[str, Any]:
    """Gaps of `decoding` requests, in seconds: `alone`, before and after, and `beside` a prompt until its first token.

    seconds: that the prompt took.
    """
    params = SamplingParams(max_tokens=engine.context, ignore_eos=True)
    requests = [TokenSequence(prompts.ids(own_prompt), params, engine.tokenizer) for _ in range(decoding)]
    long = TokenSequence(prompts.ids(prompt), SamplingParams(max_tokens=1, ignore_eos=True), engine.tokenizer)
    watch, alone, beside = Watch(engine), list[float](), list[float]()
    try:
        for request in requests:
            engine.add(request)
        while min(len(request.output_ids) for request in requests) < SETTLE:
            watch.step()
        for _ in range(ALONE):
            alone += watch.step()
        engine.add(long)
        began = time.perf_counter()
        while long.finish_reason is None:
            beside += watch.step()
        seconds = time.perf_counter() - began
        for _ in range(ALONE):
            alone += watch.step()
    finally:
        for request in [*requests, long]:
            engine.cancel(request)
    ended = [request.finish_reason for request in requests if request.finish_reason != "cancelled"]
    assert not ended, "the requests decode as long as the prompt is read"
    return {"alone": alone, "beside": beside, "seconds": seconds}


def latency(
    path: Path, mode: str, decoding: int, prompt: int, rounds: int, threads: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rounds of the above, with prompts that are new each time."""
    context = max(-(-(prompt + 32) // 64) * 64, ROOM)
    figures = []
    with open_engine(path, mode=mode, context=context, max_sequences=decoding + 1, threads=threads) as engine:
        prompts = Prompts(engine.tokenizer, engine.directory.spec.vocab_size)
        for turn in range(rounds):
            figures.append(beside_a_prompt(engine, prompts, decoding, prompt, 32))
            of = figures[-1]
            tell(
                f"{path.name}, {mode}, round {turn + 1} of {rounds}: median {1e3 * quantile(of['alone'], 0.5):.1f} ms "
                f"alone, p99 {1e3 * quantile(of['beside'], 0.99):.1f} ms beside {prompt} tokens, {of['seconds']:.1f} s"
            )
    return figures


def quantile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), -(-int(share * 10000) * len(ordered) // 10000)) - 1)]
