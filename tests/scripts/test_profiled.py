"""Profiling a model of known sparsity measures the frequencies that were planted in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from synthetic.checkpoint import write_checkpoint
from synthetic.shape import Shape
from synthetic.weights import PlantedWeights

from hybrid.stages.pack import pack
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.stages.texts import Corpus
from hybrid.tokenizer import load_tokenizer
from profiler.profile import read_profile
from profiler.skew import SHARES

TOKENS = 4000


@pytest.mark.parametrize(
    "options", [{"kv_heads": 4}, {"family": "opt", "kv_heads": 8}, {"kv_heads": 4, "sparsity": 0.8, "hot_share": 0.43}]
)
def test_measured_frequencies_are_the_planted_ones(tmp_path: Path, options: dict[str, object]) -> None:
    weights = PlantedWeights(Shape(**{"hidden": 256, "layers": 2, "ffn": 1024, "heads": 8, "rank": 63, **options}))
    write_checkpoint(tmp_path / "checkpoint", weights)
    path = pack(tmp_path / "checkpoint", tmp_path / "model").destination
    tokenizer = load_tokenizer(path)
    before = len(tokenizer.decode([1000]))
    pieces = {i: tokenizer.decode([1000, i])[before:] for i in range(4096)}
    # Words of one token each, all equally often.
    words = [w for i, w in pieces.items() if w[:1] == " " and tokenizer.encode(f"x{w} y", False)[1:2] == [i]]
    text = tmp_path / "random.txt"
    text.write_text("".join(np.random.default_rng(1).choice(words, TOKENS)))
    report = profile(path, [text], ProfileSettings(tokens=TOKENS, train=False))
    assert report.tokens == TOKENS
    counted = read_profile(path / "profiles" / "default.safetensors")
    assert counted.frequency().mean() == pytest.approx(float(weights.probabilities.mean()), rel=0.03)
    # Counts of n independent draws scatter by sqrt(p (1 - p) / n). A token that comes again fires almost the same
    # neurons, so n is the number of tokens over how often one comes on average.
    times = Counter(i for window in Corpus.open([text], tokenizer).windows(125, TOKENS) for i in window.ids)
    independent = TOKENS**2 / sum(n * n for n in times.values())
    assert independent > 300
    for layer in range(2):
        planted = weights.firing(layer).numpy()
        off = (counted.frequency()[layer] - planted) / np.sqrt(planted * (1 - planted) / independent)
        # What attention adds is alike for all tokens of a Llama and shifts its gates a little: 1.4 to 2.1 were seen.
        assert 0.3 < np.sqrt((off**2).mean()) < 2.6
        assert np.abs(off).max() < 12
    # What was planted does not depend on the text, so neurons chosen on one half are as hot on the other.
    assert report.skew is not None
    place = SHARES.index(options.get("hot_share", 0.26))
    assert report.skew.held_out[place] == pytest.approx(0.8, abs=0.02)
    assert report.skew.in_sample[place] == pytest.approx(report.skew.held_out[place], abs=0.01)
