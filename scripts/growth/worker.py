"""The engine as it is measured here: many opened models in one process, batches, contexts that are there already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hybrid.ops import cpu
from hybrid.runtime.engine import Engine
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.stages.opening import open_engine
from hybrid.stages.peers.protocol import serve


class Engines:
    """Opened engines by name; keys and values in f16."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def open(
        self, name: str, path: str, mode: str, predictors: str, threads: int, context: int, sequences: int
    ) -> dict[str, Any]:
        """Open a model directory. context: tokens of each of at most `sequences` at a time."""
        self._engines[name] = open_engine(
            path,
            mode=mode,
            profile=predictors,
            context=context,
            max_sequences=sequences,
            threads=threads,
            reuse_prefixes=False,  # texts of other rounds are computed too, and pages are taken in one order
        )
        return {"isa": cpu.isa()}

    def fill(self, names: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
        """Compute a text's keys and values in the first of some engines of one model, and copy them into the others.

        They stay in the pages that the next single sequence is given.
        """
        first, *others = (self._engines[name] for name in names)
        began = time.perf_counter()
        first.hidden_states(ids)
        for engine in others:
            for ours, theirs in zip(engine.decoder.layers, first.decoder.layers, strict=True):
                ours.pages.keys.copy_(theirs.pages.keys)
                ours.pages.values.copy_(theirs.pages.values)
        return {"seconds": time.perf_counter() - began}

    def decode(self, name: str, prompts: Sequence[Sequence[int]], tokens: int, filled: bool = False) -> dict[str, Any]:
        """Greedy: `seconds` of each of `tokens` steps in which all sequences take part, and each one's `ids`.

        filled: of a prompt all but the last token is in the pages already, from `fill`. active: share of the rows whose
        sums were finished, by token; read: share whose first product was computed.
        """
        engine = self._engines[name]
        params = SamplingParams(max_tokens=engine.context, ignore_eos=True)
        sequences = [TokenSequence(list(prompt), params, engine.tokenizer) for prompt in prompts]
        if filled:
            (sequence,) = sequences
            sequence.computed = len(sequence.prompt_ids) - 1
        steps, seconds = engine.run(sequences), []
        while not all(sequence.output_ids for sequence in sequences):
            next(steps)
        rows = engine.ledger.decode.cpu
        gated, finished = rows.gated, rows.finished
        for _ in range(tokens):
            began = time.perf_counter()
            next(steps)
            seconds.append(time.perf_counter() - began)
        steps.close()
        computed = len(prompts) * tokens * engine.directory.spec.n_layers * engine.directory.spec.n_neurons
        return {
            "seconds": seconds,
            "ids": [sequence.output_ids[: tokens + 1] for sequence in sequences],
            "read": (rows.gated - gated) / computed,
            "active": (rows.finished - finished) / computed,
        }

    def close(self) -> dict[str, Any]:
        """Close all engines."""
        while self._engines:
            self._engines.popitem()[1].close()
        return {}


if __name__ == "__main__":
    engines = Engines()
    serve({name: getattr(engines, name) for name in ("open", "fill", "decode", "close")})
