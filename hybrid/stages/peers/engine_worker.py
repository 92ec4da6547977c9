"""This engine as a contender: whole steps are timed, sampling included."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from hybrid.ops import cpu
from hybrid.runtime.cuda_memory import device_memory
from hybrid.runtime.engine import Engine
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.runtime.summary import summarise
from hybrid.runtime.vram import context_cost
from hybrid.stages.opening import open_engine
from hybrid.stages.peers.protocol import serve
from hybrid.stages.quality import score


class ThisEngine:
    """One model in one mode on one plan."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def open(
        self,
        path: str,
        threads: int | None,
        context: int | None,
        mode: str,
        *,
        plan: str | None = None,
        device: Literal["cpu", "cuda"] | None = None,
        kv_format: str = "f16",
        mmap: bool = True,
        slowdown: Mapping[str, float] | None = None,
        overlap: bool = True,
        prefill_tokens: int | None = None,
    ) -> dict[str, Any]:
        """Open a model directory in place of what was open. plan: its file; the others are as `open_engine`'s."""
        self.close()
        self._engine = open_engine(
            path,
            mode=mode,
            plan=plan,
            device=device,
            context=context,
            kv_format=kv_format,
            threads=threads,
            mmap=mmap,
            slowdown=slowdown,
            overlap=overlap,
            prefill_tokens=prefill_tokens,
            reuse_prefixes=False,  # a prompt that is timed twice is computed twice
        )
        return {"isa": cpu.isa(), "context": self._engine.context}

    def context(self) -> dict[str, Any]:
        """`bytes` of the GPU that this process takes by being there, with what the driver may come to take.

        Raises:
            UserError: torch sees no CUDA device.
        """
        return {"bytes": context_cost(0, device_memory("cuda"))}

    def decode(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Greedy: `seconds` of each of `tokens` steps after the prompt's, and the tokens `ids` that they were given.

        first_token_seconds: what the prompt took, with the token that followed it. active: share of the rows whose sums
        were finished; read: share whose first product was computed. Where all of the model is in host memory,
        operators: shares of these steps' time by kind, and interpreter_share: what was spent outside native code.
        """
        engine = self._opened()
        sequence = self._sequence(prompt, tokens + 1)
        steps = self._steps(sequence)
        first = 0.0
        while not sequence.output_ids:
            first += next(steps)
        before = self._sums()
        seconds = list(steps)
        spent = {name: total - before[name] for name, total in self._sums().items()}
        rows = tokens * engine.directory.spec.n_layers * engine.directory.spec.n_neurons
        gated, finished, taken, native = (spent.pop(name) for name in ("gated", "finished", "seconds", "native"))
        shares: dict[str, Any] = {"read": gated / rows, "active": finished / rows}
        if engine.machine.recorded is not None:
            shares["operators"] = {kind: of_kind / taken for kind, of_kind in spent.items()}
            shares["interpreter_share"] = 1 - native / taken
        return {"first_token_seconds": first, "seconds": seconds, "ids": sequence.output_ids[:-1], **shares}

    def prefill(self, prompt: Sequence[int]) -> dict[str, Any]:
        """`seconds` that a prompt takes, with the logits of its last token."""
        sequence = self._sequence(prompt, 1)
        return {"seconds": sum(self._steps(sequence)), "next": sequence.output_ids[0]}

    def score(self, ids: Sequence[int]) -> dict[str, Any]:
        """`loss`: summed over a text's predicted tokens, in nats; `likeliest`: the token expected in the place of each.

        Raises:
            UserError: the model's output is not finite.
        """
        return asdict(score(self._opened(), ids))

    def summary(self) -> dict[str, Any]:
        """What was decoded so far, and what of memory is used for it; see `RunSummary`."""
        return asdict(summarise(self._opened()))

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
        """Of decoding so far: rows, seconds, those in native code; and the seconds of each kind of native operator."""
        engine = self._opened()
        decode, recorded = engine.ledger.decode, engine.machine.recorded
        by_unit = [decode.rows(name) for name in engine.machine.units]
        rows = {"gated": sum(unit.gated for unit in by_unit), "finished": sum(unit.finished for unit in by_unit)}
        kinds = {} if recorded is None else recorded.seconds()
        return {**rows, "seconds": decode.seconds, "native": decode.native_seconds, **kinds}


if __name__ == "__main__":
    contender = ThisEngine()
    commands = ("context", "open", "decode", "prefill", "score", "summary", "close")
    serve({name: getattr(contender, name) for name in commands})
