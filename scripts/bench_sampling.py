"""What a token costs that is picked from logits: microseconds, by how it is sampled and by size of vocabulary.

    python scripts/bench_sampling.py [--rounds 60] [--schema]

All that a step samples is sampled on the engine's thread, one sequence after the other, while nothing is computed. So
16 sequences with rows of their own take turns, as in a step of 16; a figure is the median over rounds of a sixteenth of
one. Logits are normal deviates times `spread`: of 3 a nucleus has hundreds of tokens, of 1 most of the vocabulary.
Penalties are over a prompt of 1,000 tokens. With --schema also the tokens of JSON that meets a small schema are timed,
over a vocabulary of random words.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch

from hybrid.reports import table
from hybrid.runtime.grammar import Grammar, GrammarFactory
from hybrid.runtime.processor import processor_name
from hybrid.runtime.sampler import Sampler, SamplingParams

VOCABULARIES, SPREADS, TOGETHER = (32_000, 128_256, 152_064), (3.0, 1.0), 16
PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5}
KINDS = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top_p 0.9, top_k 40": {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "penalties, greedy": PENALTIES,
    "penalties, temperature": {"temperature": 0.8, **PENALTIES},
    "5 logprobs, greedy": {"logprobs": 5},
    "20 logprobs, temperature": {"temperature": 0.8, "logprobs": 20},
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {}}},
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


class Words:
    """A tokenizer of so many random words, with all bytes: as much of one as a grammar asks for."""

    bos_id, has_bytes = 1, True
    eos_ids = special_ids = frozenset({2})

    def __init__(self, size: int) -> None:
        random, letters = np.random.default_rng(0), np.frombuffer(b'abcdefghijklmnopqrstuvwxyz ABC019{}[]",:', np.uint8)
        tokens = {bytes([byte]): None for byte in range(256)}
        while len(tokens) < size:
            tokens[random.choice(letters, random.integers(2, 9)).tobytes()] = None
        self._tokens, self.vocab_size = list(tokens), size

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        return self._tokens[token_id]

    def is_silent(self, token_id: int) -> bool:
        """See `Tokenizer`."""
        return token_id in self.special_ids

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """None: the bytes that a grammar forces are then the longest tokens."""
        return []


def picked(size: int, spread: float, options: dict[str, float], rounds: int) -> float:
    """Microseconds of a pick."""
    random = np.random.default_rng(0)
    rows = [torch.from_numpy((random.standard_normal(size) * spread).astype(np.float32)) for _ in range(TOGETHER)]
    params = SamplingParams(seed=1, **options)
    samplers = [Sampler(params, list(range(500, 1500)), index=index) for index in range(TOGETHER)]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for sampler, row in zip(samplers, rows, strict=True):
            sampler.pick(row)
        seconds.append((time.perf_counter() - began) / TOGETHER)
    return statistics.median(seconds[2:]) * 1e6


def written(size: int, rounds: int) -> list[float]:
    """Microseconds of each pick under the schema; the first ones of a grammar are among them."""
    factory, random, seconds = GrammarFactory(Words(size)), np.random.default_rng(0), []
    for seed in range(rounds):
        matcher = factory.compile(Grammar("json_schema", json.dumps(SCHEMA)))
        sampler = Sampler(SamplingParams(temperature=0.8, seed=seed), (), matcher)
        row = torch.from_numpy((random.standard_normal(size) * 3).astype(np.float32))
        for _ in range(60):
            if sampler.ended:
                break
            began = time.perf_counter()
            sampler.pick(row)
            seconds.append(time.perf_counter() - began)
    return sorted(second * 1e6 for second in seconds)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--schema", action="store_true")
    arguments = parser.parse_args()
    print(f"{processor_name()}; microseconds of a pick\n")
    heads = [f"{size:,} tokens, spread {spread:g}" for size in VOCABULARIES for spread in SPREADS]
    rows = [
        [name, *(f"{picked(size, spread, kind, arguments.rounds):.0f}" for size in VOCABULARIES for spread in SPREADS)]
        for name, kind in KINDS.items()
    ]
    print("\n".join(table(["", *heads], rows)))
    if arguments.schema:
        for size in VOCABULARIES:
            times = written(size, arguments.rounds)
            shown = f"median {times[len(times) // 2]:.0f}, 99th percentile {times[len(times) * 99 // 100]:.0f}"
            print(f"\nJSON of a schema, {size:,} tokens: {shown}, most {times[-1]:.0f}")


if __name__ == "__main__":
    main()
