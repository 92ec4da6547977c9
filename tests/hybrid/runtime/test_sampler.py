"""Which token is picked: cuts and draws against transformers and against the distribution itself."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hybrid.runtime.sampler import NumericalError, Sampler, SamplingParams

LOGITS = arrays(np.float32, st.integers(1, 60), elements=st.floats(-20, 20, width=32))
# A share of so many draws is further off less than once in a million million times (Hoeffding's inequality), and seeds
# are fixed besides.
DRAWS, FURTHEST = 4_500, 0.06


def softmax(logits, temperature=1.0):
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def some_logits(size, seed=0, deviation=3.0):
    return (np.random.default_rng(seed).standard_normal(size) * deviation).astype(np.float32)


def picks(params, rows, **options):
    sampler = Sampler(params, **options)
    return [sampler.pick(row).token_id for row in rows]


@given(LOGITS)
@settings(deadline=None, max_examples=50)
def test_greedy_takes_the_likeliest_and_of_ties_the_lowest_id(logits):
    logits = np.round(logits)
    picked = Sampler(SamplingParams()).pick(torch.from_numpy(logits))
    assert picked == (int(np.flatnonzero(logits == logits.max())[0]), None, ())


@pytest.mark.parametrize("size", [1, 7, 300, 5_000, 40_000])
@pytest.mark.parametrize("deviation", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40},
        {"top_p": 0.9},
        {"top_p": 0.3},
        {"top_p": 0.999},
        {"min_p": 0.1},
        {"top_k": 40, "top_p": 0.9},
        {"top_p": 0.95, "min_p": 0.02},
        {"top_k": 3000, "top_p": 0.8, "min_p": 0.2},
    ],
)
def test_cuts_are_those_of_transformers(size, deviation, options):
    temperature = 0.8
    logits = some_logits(size, seed=size, deviation=deviation) + np.linspace(0, 1e-2, size, dtype=np.float32)
    logits = logits[np.argsort(np.unique(logits, return_index=True)[1])] if size > 1 else logits  # no ties
    scores = torch.from_numpy(logits / np.float32(temperature))[None]
    for kind, warper in (("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper)):
        if kind in options:
            scores = warper(options[kind])(torch.zeros(1, 1, dtype=torch.long), scores)
    expected = scores[0].double().softmax(0).numpy()
    ids, kept = Sampler(SamplingParams(temperature=temperature, **options)).distribution(logits)
    found = np.zeros(logits.size)
    found[ids] = kept
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    # Both round: a token at the edge of a nucleus may fall on either side of it, with what it weighs.
    at_edge = np.flatnonzero((found > 0) != (expected > 0))
    assert expected[at_edge].sum() + found[at_edge].sum() < 2e-4
    np.testing.assert_allclose(np.delete(found, at_edge), np.delete(expected, at_edge), rtol=1e-3, atol=1e-7)


@given(LOGITS, st.floats(0.05, 5), st.floats(0.01, 0.999))
@settings(deadline=None, max_examples=150)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, temperature, top_p):
    ids, kept = Sampler(SamplingParams(temperature=temperature, top_p=top_p)).distribution(logits)
    probabilities = softmax(logits, temperature)
    chosen = probabilities[ids]
    assert len(set(ids.tolist())) == len(ids)
    assert chosen.sum() >= top_p - 1e-5
    assert chosen.sum() - chosen.min() < top_p + 1e-5
    left_out = np.delete(probabilities, ids)
    assert left_out.size == 0 or left_out.max() <= chosen.min() + 1e-12
    np.testing.assert_allclose(kept, chosen / chosen.sum(), rtol=2e-4)


@given(st.integers(1, 30_000), st.integers(1, 400), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=40)
def test_top_k_keeps_the_k_likeliest_ties_by_lowest_id(size, top_k, seed, ties):
    logits = some_logits(size, seed)
    logits = np.round(logits) if ties else logits
    ids, _ = Sampler(SamplingParams(temperature=1.0, top_k=top_k)).distribution(logits)
    assert ids.tolist() == np.lexsort((np.arange(size), -logits))[:top_k].tolist() or top_k >= size


def test_top_p_applies_to_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    ids, kept = Sampler(SamplingParams(temperature=1.0, top_k=2, top_p=0.5)).distribution(logits)
    assert ids.tolist() == [0]  # 0.4 of 0.7 reaches a half
    assert kept.tolist() == [1.0]


def test_an_edge_that_a_sample_misses_is_found_all_the_same():
    logits = np.zeros(50_000, dtype=np.float32)
    logits[1::12] = 6.0  # a sample takes every twelfth of them, and meets none of these
    ids, _ = Sampler(SamplingParams(temperature=1.0, top_p=0.5)).distribution(logits)
    share = softmax(logits)
    assert set(ids.tolist()) == set(np.lexsort((np.arange(50_000), -logits))[: len(ids)].tolist())
    assert share[ids].sum() >= 0.5 - 1e-6 > share[ids].sum() - share[ids].min() - 2e-6


@pytest.mark.parametrize("size", [12, 9_000])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 0.7}, {"top_p": 0.99, "min_p": 0.01}]
)
def test_tokens_are_drawn_as_often_as_their_probability_says(options, size):
    params = SamplingParams(**{"temperature": 1.0, "seed": 5, **options})
    logits = some_logits(size, deviation=2.5)
    ids, kept = Sampler(params).distribution(logits)
    drawn = np.bincount(picks(params, [logits] * DRAWS), minlength=size) / DRAWS
    assert drawn[np.setdiff1d(np.arange(size), ids)].sum() == 0
    expected = np.zeros(size)
    expected[ids] = kept
    likeliest = np.argsort(-expected)[:12]
    np.testing.assert_allclose(drawn[likeliest], expected[likeliest], atol=FURTHEST)
    for first in range(0, size, max(1, size // 7)):  # and stretches of the vocabulary, ends included
        np.testing.assert_allclose(drawn[first:].sum(), expected[first:].sum(), atol=FURTHEST)


def test_every_number_draws_its_token():
    """The share of numbers in [0, 1) that draw a token is the token's probability, whatever the layout of the sums."""
    from hybrid.runtime.distribution import draw

    for size in (5, 4_096, 4_097, 20_003):
        weights = np.exp(some_logits(size, deviation=1.0))
        weights[::3] = 0
        weights[7 % size] = weights.sum() / 3
        steps = 3_000
        drawn = np.bincount([draw(weights, (i + 0.5) / steps) for i in range(steps)], minlength=size)
        assert drawn[weights == 0].sum() == 0
        # A token's numbers are one interval, of which a grid counts all but at most one step.
        np.testing.assert_allclose(drawn / steps, weights / weights.sum(), atol=1.01 / steps)
        assert weights[draw(weights, 0.0)] > 0 and weights[draw(weights, 1 - 2**-53)] > 0


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_a_seed_repeats_a_text_whatever_else_is_sampled(seed, data_seed):
    rows = np.random.default_rng(data_seed).standard_normal((20, 5_000)).astype(np.float32)
    params = SamplingParams(temperature=1.0, seed=seed)
    expected = picks(params, rows)
    one = Sampler(params)
    others = [Sampler(SamplingParams(temperature=2.0, seed=3, top_p=0.9)), Sampler(SamplingParams(logprobs=3))]
    beside = []
    for row in rows:
        others[0].pick(row * 3)
        beside.append(one.pick(torch.from_numpy(row)).token_id)
        others[1].pick(-row)
    assert beside == expected


def test_each_of_n_texts_has_random_numbers_of_its_own():
    rows, params = np.zeros((40, 1000), dtype=np.float32), SamplingParams(temperature=1.0, seed=7, n=4)
    texts = [picks(params, rows, index=index) for index in range(4)]
    assert len({tuple(text) for text in texts}) == 4
    assert texts == [picks(params, rows, index=index) for index in range(4)]
    assert texts[0] == picks(SamplingParams(temperature=1.0, seed=7), rows), "the first is the one of n = 1"
    assert texts[1] != picks(SamplingParams(temperature=1.0, seed=8), rows), "nor are they those of the next seed"


def test_without_a_seed_texts_differ():
    rows = np.zeros((40, 1000), dtype=np.float32)
    assert picks(SamplingParams(temperature=1.0), rows) != picks(SamplingParams(temperature=1.0), rows)


@given(LOGITS, st.integers(0, 99), st.sampled_from([1e-4, 1e-30, 1e-300, 5e-324]))
@settings(deadline=None, max_examples=50)
def test_small_temperatures_become_greedy_and_do_not_overflow(logits, seed, temperature):
    assume(logits.size == 1 or np.diff(np.sort(logits))[-1] > 5e-3)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for options in ({}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}):
            params = SamplingParams(temperature=temperature, seed=seed, **options)
            assert picks(params, [logits]) == [int(logits.argmax())]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 2.0}, {"logprobs": 0}])
def test_logits_that_are_no_numbers_are_an_error_of_the_model(bad, options):
    logits = torch.zeros(8)
    logits[3] = bad
    with pytest.raises(NumericalError, match="not finite"):
        Sampler(SamplingParams(**options)).pick(logits)


def test_sixteen_bit_logits_are_taken_and_no_row_is_changed():
    assert Sampler(SamplingParams()).pick(torch.tensor([0.0, 2.0, 1.0], dtype=torch.bfloat16)).token_id == 1
    row = torch.from_numpy(some_logits(5_000))
    before = row.clone()
    params = {"repetition_penalty": 1.5, "presence_penalty": 1.0, "logit_bias": {3: 5.0}, "logprobs": 4}
    for cut in ({}, {"top_p": 0.5}, {"top_p": 0.9, "min_p": 0.1}, {"top_k": 9}):
        Sampler(SamplingParams(temperature=9.0, **params, **cut), [1, 2]).pick(row)
    assert torch.equal(row, before)


def test_greedy_decoding_loads_no_generators():
    script = """
import sys
from hybrid import LLM, SamplingParams
with LLM("demo") as llm:
    llm.generate("def ", SamplingParams(max_tokens=3))
    assert "numpy.random" not in sys.modules
    assert "llguidance" not in sys.modules
    llm.generate("def ", SamplingParams(max_tokens=3, temperature=1.0, seed=0))
    assert "numpy.random" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
