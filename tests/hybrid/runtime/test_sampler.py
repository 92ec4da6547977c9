import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from hybrid.runtime.sampler import NumericalError, Sampler, SamplingParams
from profiler.artifacts import UserError

LOGITS = arrays(np.float64, st.integers(1, 60), elements=st.floats(-20, 20))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = logits / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


@given(LOGITS)
@settings(deadline=None, max_examples=50)
def test_greedy_takes_the_likeliest_and_of_ties_the_lowest_id(logits):
    logits = np.round(logits)
    picked = Sampler(SamplingParams()).pick(torch.from_numpy(logits).float())
    assert picked == int(np.flatnonzero(logits == logits.max())[0])


@given(LOGITS, st.floats(0.05, 5), st.floats(0.01, 0.999))
@settings(deadline=None, max_examples=150)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, temperature, top_p):
    ids, kept = Sampler(SamplingParams(temperature=temperature, top_p=top_p)).distribution(logits)
    probabilities = softmax(logits, temperature)
    chosen = probabilities[ids]
    assert len(set(ids.tolist())) == len(ids)
    assert chosen.sum() >= top_p - 1e-9
    assert chosen.sum() - chosen.min() < top_p + 1e-9
    left_out = np.delete(probabilities, ids)
    assert left_out.size == 0 or left_out.max() <= chosen.min() + 1e-12
    np.testing.assert_allclose(kept, chosen / chosen.sum(), rtol=1e-9)


@given(LOGITS, st.integers(1, 70))
@settings(deadline=None, max_examples=80)
def test_top_k_keeps_the_k_likeliest_ties_by_lowest_id(logits, top_k):
    logits = np.round(logits)
    ids, _ = Sampler(SamplingParams(temperature=1.0, top_k=top_k)).distribution(logits)
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    assert sorted(ids.tolist()) == sorted(expected)


def test_top_p_applies_to_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    ids, kept = Sampler(SamplingParams(temperature=1.0, top_k=2, top_p=0.5)).distribution(logits)
    assert ids.tolist() == [0]  # 0.4 of 0.7 reaches a half
    assert kept.tolist() == [1.0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(temperature=1.0, seed=1), lambda p: p),
        (SamplingParams(temperature=1.0, top_k=5, seed=2), lambda p: np.where(p >= np.sort(p)[-5], p, 0)),
        (SamplingParams(temperature=1.0, top_p=0.8, seed=3), None),
        (SamplingParams(temperature=0.7, seed=4), lambda p: p ** (1 / 0.7)),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(params, expected):
    logits = np.random.default_rng(0).standard_normal(12)
    probabilities = softmax(logits)
    if expected is None:
        order = np.argsort(-probabilities)
        count = int(np.searchsorted(probabilities[order].cumsum(), 0.8)) + 1
        wanted = np.where(np.isin(np.arange(12), order[:count]), probabilities, 0)
    else:
        wanted = expected(probabilities)
    wanted = wanted / wanted.sum()
    sampler, draws = Sampler(params), 8_000
    counts = np.bincount([sampler.pick(logits) for _ in range(draws)], minlength=12)
    assert counts[wanted == 0].sum() == 0
    support = wanted > 0
    assert stats.chisquare(counts[support], wanted[support] * draws).pvalue > 0.001


@given(st.integers(0, 2**63), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_a_seed_repeats_a_text_whatever_else_is_sampled(seed, data_seed):
    rows = np.random.default_rng(data_seed).standard_normal((20, 50))
    params = SamplingParams(temperature=1.0, seed=seed)
    alone = Sampler(params)
    expected = [alone.pick(row) for row in rows]
    one, other = Sampler(params), Sampler(SamplingParams(temperature=2.0, seed=seed + 1))
    beside = []
    for row in rows:
        other.pick(row)
        beside.append(one.pick(torch.from_numpy(row)))
        other.pick(row)
    assert beside == expected


def test_without_a_seed_texts_differ():
    rows = np.zeros((40, 1000))
    first, second = Sampler(SamplingParams(temperature=1.0)), Sampler(SamplingParams(temperature=1.0))
    assert [first.pick(row) for row in rows] != [second.pick(row) for row in rows]


@given(LOGITS, st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_small_temperatures_become_greedy(logits, seed):
    logits = np.arange(len(logits)) * 0.01 + np.round(logits)  # no ties
    sampler = Sampler(SamplingParams(temperature=1e-4, seed=seed))
    if len(logits) > 1 and np.diff(np.sort(logits))[-1] < 5e-3:
        return
    assert sampler.pick(logits) == int(logits.argmax())


@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
def test_the_smallest_temperatures_do_not_overflow(temperature):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert Sampler(SamplingParams(temperature=temperature, seed=0)).pick(np.array([1.0, 3.0, 2.0])) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error_of_the_model(bad, temperature):
    logits = torch.zeros(8)
    logits[3] = bad
    with pytest.raises(NumericalError, match="not finite"):
        Sampler(SamplingParams(temperature=temperature)).pick(logits)


def test_sixteen_bit_logits_are_taken():
    assert Sampler(SamplingParams()).pick(torch.tensor([0.0, 2.0, 1.0], dtype=torch.bfloat16)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 1.0},
        {"stop": ("",)},
        {"stop": "end"},
        {"stop": (3,)},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_greedy_decoding_loads_no_generators():
    script = """
import sys
from hybrid import LLM, SamplingParams
with LLM("demo") as llm:
    llm.generate("def ", SamplingParams(max_tokens=3))
    assert "numpy.random" not in sys.modules
    llm.generate("def ", SamplingParams(max_tokens=3, temperature=1.0, seed=0))
    assert "numpy.random" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
