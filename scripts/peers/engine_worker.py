"""This engine as a contender: whole steps are timed, sampling included."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from hybrid.ops import cpu
from hybrid.runtime.engine import Engine
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.stages.opening import open_engine
from peers.protocol import serve


class ThisEngine:
    """One model in one mode."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def open(
        self, path: str, threads: int, context: int, mode: str, prefill_tokens: int | None = None
    ) -> dict[str, Any]:
        """Open a model directory in place of what was open; keys and values in f16, as the peer has them."""
        self.close()
        self._engine = open_engine(
            path, mode=mode, context=context, kv_format="f16", threads=threads, prefill_tokens=prefill_tokens
        )
        return {"isa": cpu.isa()}

    def decode(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Greedy: `seconds` of each of `tokens` steps after the prompt's, and the tokens `ids` that they were given.

        active: share of the rows whose sums were finished; read: share whose first product was computed. operators:
        shares of these steps' time by kind; interpreter_share: what of it was spent outside native code.
        """
        engine = self._opened()
        sequence = self._sequence(prompt, tokens + 1)
        steps = self._steps(sequence)
        while not sequence.output_ids:
            next(steps)
        before = self._sums()
        seconds = list(steps)
        spent = {name: total - before[name] for name, total in self._sums().items()}
        rows = tokens * engine.directory.spec.n_layers * engine.directory.spec.n_neurons
        gated, finished, taken, native = (spent.pop(name) for name in ("gated", "finished", "seconds", "native"))
        return {
            "seconds": seconds,
            "ids": sequence.output_ids[:-1],
            "read": gated / rows,
            "active": finished / rows,
            "operators": {kind: of_kind / taken for kind, of_kind in spent.items()},
            "interpreter_share": 1 - native / taken,
        }

    def prefill(self, prompt: Sequence[int]) -> dict[str, Any]:
        """`seconds` that a prompt takes, with the logits of its last token."""
        sequence = self._sequence(prompt, 1)
        return {"seconds": sum(self._steps(sequence)), "next": sequence.output_ids[0]}

    def close(self) -> dict[str, Any]:
        """Close the engine."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        return {}

    def _opened(self) -> Engine:
        assert self._engine is not None, "a model is open"
        return self._engine

    def _sequence(self, prompt: Sequence[int], tokens: int) -> TokenSequence:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        return TokenSequence(list(prompt), params, self._opened().tokenizer)

    def _steps(self, sequence: TokenSequence) -> Iterator[float]:
        """Seconds of each step, those of the prompt first."""
        began = time.perf_counter()
        for _ in self._opened().run([sequence]):
            yield time.perf_counter() - began
            began = time.perf_counter()

    def _sums(self) -> dict[str, float]:
        """Of decoding so far: rows, seconds, those in native code; and the seconds of each kind of operator."""
        decode, recorded = self._opened().ledger.decode, self._opened().machine.recorded
        assert recorded is not None, "all of the model is in host memory"
        rows = {"gated": decode.cpu.gated, "finished": decode.cpu.finished}
        return {**rows, "seconds": decode.seconds, "native": decode.native_seconds, **recorded.seconds()}


if __name__ == "__main__":
    contender = ThisEngine()
    serve({name: getattr(contender, name) for name in ("open", "decode", "prefill", "close")})
