"""Penalties against transformers and OpenAI's formula, and log probabilities against a plain log-softmax."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from hybrid.runtime.logprobs import token_logprob
from hybrid.runtime.penalties import Penalties
from hybrid.runtime.sampler import Sampler, SamplingParams

SIZE = 200
IDS = st.lists(st.integers(0, SIZE - 1), max_size=150)


def some_logits(seed, size=SIZE):
    return (np.random.default_rng(seed).standard_normal(size) * 4).astype(np.float32)


def after(params, prompt, output, logits):
    penalties = Penalties(params, prompt)
    for token_id in output:
        penalties.note(token_id)
    found = logits.copy()
    penalties.apply(found)
    return found


@given(IDS, IDS, st.floats(0.1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_the_repetition_penalty_is_that_of_transformers(prompt, output, penalty, seed):
    logits = some_logits(seed)
    ids = torch.tensor([prompt + output], dtype=torch.long)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.from_numpy(logits.copy())[None])[0]
    found = after(SamplingParams(repetition_penalty=penalty), prompt, output, logits)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


@given(IDS, IDS, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_presence_and_frequency_are_openais_over_the_output_alone(prompt, output, presence, frequency, seed):
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence; c counts sampled tokens."""
    logits, counts = some_logits(seed), Counter(output)
    c = np.array([counts[j] for j in range(SIZE)])
    expected = logits - c * frequency - (c > 0) * presence
    params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
    np.testing.assert_allclose(after(params, prompt, output, logits), expected, rtol=1e-5, atol=1e-4)


@given(IDS, IDS, st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100), max_size=20), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_order_is_repetition_then_counts_then_biases(prompt, output, biases, seed):
    logits, counts = some_logits(seed).astype(np.float64), Counter(output)
    expected = logits.copy()
    for j in range(SIZE):
        if j in prompt or j in output:
            expected[j] = logits[j] / 1.7 if logits[j] > 0 else logits[j] * 1.7
        expected[j] -= counts[j] * 0.3 + (counts[j] > 0) * 0.9
        expected[j] += biases.get(j, 0)
    params = SamplingParams(
        repetition_penalty=1.7, frequency_penalty=0.3, presence_penalty=0.9, logit_bias=biases, temperature=1.0, seed=1
    )
    np.testing.assert_allclose(after(params, prompt, output, some_logits(seed)), expected, rtol=1e-5, atol=1e-4)


def test_a_sampler_counts_what_it_picked():
    logits = np.array([2.0, 1.9, 1.8, 0.0], dtype=np.float32)
    sampler = Sampler(SamplingParams(frequency_penalty=0.15))
    assert [sampler.pick(logits).token_id for _ in range(6)] == [0, 1, 0, 2, 1, 0]
    sampler = Sampler(SamplingParams(presence_penalty=2.0), prompt_ids=[0])
    assert [sampler.pick(logits).token_id for _ in range(4)] == [0, 1, 2, 0], "the prompt does not count"
    sampler = Sampler(SamplingParams(repetition_penalty=10.0), prompt_ids=[0])
    assert [sampler.pick(logits).token_id for _ in range(2)] == [1, 2], "here it does"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_biases_ban_and_force(temperature):
    logits = some_logits(3)
    best = int(logits.argmax())
    banned = Sampler(SamplingParams(temperature=temperature, seed=0, logit_bias={best: -100}))
    forced = Sampler(SamplingParams(temperature=temperature, seed=0, logit_bias={5: 100.0}))
    assert best not in {banned.pick(logits).token_id for _ in range(50)}
    assert {forced.pick(logits).token_id for _ in range(50)} == {5}


@pytest.mark.parametrize("size", [3, 200, 40_000])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_logprobs_are_of_the_models_own_distribution(size, count):
    logits = some_logits(1, size)
    expected = torch.from_numpy(logits).double().log_softmax(0).numpy()
    options = {"temperature": 0.5, "seed": 2, "top_k": 9, "repetition_penalty": 3.0, "logit_bias": {1: 5.0}}
    sampler = Sampler(SamplingParams(logprobs=count, **options), prompt_ids=[0, 1])
    for _ in range(5):
        picked = sampler.pick(logits)
        assert picked.logprob == pytest.approx(expected[picked.token_id], abs=1e-5)
        order = np.lexsort((np.arange(size), -logits))[:count]
        assert [i for i, _ in picked.alternatives] == order.tolist()
        np.testing.assert_allclose([value for _, value in picked.alternatives], expected[order], atol=1e-5)


def test_logprobs_hold_for_logits_far_from_zero():
    logits = np.array([1e4, 1e4 - 1, -1e4], dtype=np.float32)
    found = token_logprob(logits, 2, 2)
    assert found.logprob == pytest.approx(-20000.313, abs=2e-3)
    assert [value for _, value in found.alternatives] == pytest.approx([-0.3132617, -1.3132617], abs=2e-3)
