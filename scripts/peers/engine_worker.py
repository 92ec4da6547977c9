"""This engine as a contender: whole steps are timed, sampling included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybrid.ops import cpu
from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.store.directory import ModelDirectory
from peers.protocol import serve
from profiler.predictor import read_predictors


class ThisEngine:
    """One model in one mode."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def open(self, path: str, threads: int, context: int, mode: str) -> dict[str, Any]:
        """Open a model directory in place of what was open; keys and values in f16, as the peer has them."""
        self.close()
        directory = ModelDirectory.open(Path(path))
        predictors = read_predictors(directory.predictors_path("default")) if mode == "predicted" else None
        options = EngineOptions(mode, predictors=predictors, context=context, kv_format="f16", threads=threads)
        self._engine = Engine(directory, options)
        return {"isa": cpu.isa()}

    def decode(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Greedy: `seconds` of each of `tokens` steps after the prompt's, and the tokens `ids` that they were given.

        active: share of the rows whose sums were finished; read: share whose first product was computed.
        """
        assert self._engine is not None
        before = self._counts()
        seconds, ids = self._run(prompt, tokens + 1)
        gated, finished = (after - first for after, first in zip(self._counts(), before, strict=True))
        rows = tokens * self._engine.directory.spec.n_layers * self._engine.directory.spec.n_neurons
        return {"seconds": seconds[-tokens:], "ids": ids[:-1], "read": gated / rows, "active": finished / rows}

    def prefill(self, prompt: Sequence[int]) -> dict[str, Any]:
        """`seconds` that a prompt takes, with the logits of its last token."""
        seconds, ids = self._run(prompt, 1)
        return {"seconds": sum(seconds), "next": ids[0]}

    def close(self) -> dict[str, Any]:
        """Close the engine."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        return {}

    def _run(self, prompt: Sequence[int], tokens: int) -> tuple[list[float], list[int]]:
        assert self._engine is not None
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        sequence = TokenSequence(list(prompt), params, self._engine.tokenizer)
        seconds = []
        began = time.perf_counter()
        for _ in self._engine.run([sequence]):
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
        return seconds, sequence.output_ids

    def _counts(self) -> tuple[int, int]:
        assert self._engine is not None
        rows = self._engine.ledger.decode.cpu
        return rows.gated, rows.finished


if __name__ == "__main__":
    contender = ThisEngine()
    serve({name: getattr(contender, name) for name in ("open", "decode", "prefill", "close")})
