import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.capture import (
    MINIMUM_TOKENS,
    Capture,
    CaptureLimits,
    LayerSamples,
    Sampling,
    bytes_per_token,
    encode_magnitude,
)


def run(sampling: Sampling, text: tuple[torch.Tensor, torch.Tensor], cut: int, order=None) -> LayerSamples:
    """Shows a layer its text in calls of `cut` tokens, rows in the layer's order."""
    hidden, activation = text
    capture = Capture(sampling, hidden.shape[1], activation.shape[1], order)
    rows = activation if order is None else activation[:, order]
    for start in range(0, len(hidden), cut):
        capture.add(hidden[start : start + cut], rows[start : start + cut])
    return capture.samples()


def numbered(tokens: int, neurons: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states that tell their own place in the text (exact in bfloat16), and sparse activations."""
    place = torch.arange(tokens)
    hidden = torch.stack([place // 128, place % 128], dim=1).float()
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, neurons, generator=generator)
    return hidden, values * (torch.rand(tokens, neurons, generator=generator) < 0.3)


def places(hidden: torch.Tensor) -> np.ndarray:
    return (hidden[:, 0].float() * 128 + hidden[:, 1].float()).long().numpy()


@settings(deadline=None, max_examples=25)
@given(
    documents=st.lists(st.integers(1, 400), min_size=1, max_size=60).filter(lambda d: sum(d) >= 600),
    cut=st.integers(1, 700),
    seed=st.integers(0, 100),
)
def test_samples_are_the_tokens_they_say_and_splits_share_no_piece(documents, cut, seed):
    total, neurons = sum(documents), 11
    texts = [numbered(total, neurons, layer) for layer in range(2)]
    orders = [np.random.default_rng(seed + layer).permutation(neurons) for layer in range(2)]
    limits = CaptureLimits(samples=300, heldout=256)
    sampling = Sampling(documents, bytes_per_token(2, neurons), limits, seed)
    held_at_most = total * 0.1 + total / 20 + 1
    for layer in range(2):
        samples = run(sampling, texts[layer], cut, orders[layer])
        splits = [samples.train, samples.calibration, samples.test]
        found = [places(split.hidden) for split in splits]
        assert splits[0].tokens <= 300
        for split, place in zip(splits, found, strict=True):
            assert (np.diff(place) > 0).all()
            expected = encode_magnitude(texts[layer][1][torch.from_numpy(place)])
            assert torch.equal(split.magnitude.float(), expected.float())
        for held in found[1:]:
            assert 0 < len(held) <= held_at_most
        assert len(np.unique(np.concatenate(found))) == sum(map(len, found))


def test_documents_are_held_out_as_a_whole():
    documents = [50] * 100
    samples = run(Sampling(documents, 7, seed=5), numbered(5000, 3), 512)
    of = [set(places(s.hidden) // 50) for s in (samples.train, samples.calibration, samples.test)]
    assert [len(documents_of) for documents_of in of] == [80, 10, 10]
    assert not of[0] & of[1]
    assert not of[0] & of[2]
    assert not of[1] & of[2]


def test_the_sample_is_uniform_over_the_text():
    picked = np.zeros(2000)
    for seed in range(60):
        sampling = Sampling([100] * 20, 5, CaptureLimits(samples=256, heldout=256), seed)
        picked[places(run(sampling, numbered(2000, 1), 2000).train.hidden)] += 1
    quarters = picked.reshape(4, -1).sum(1) / picked.sum()
    assert quarters == pytest.approx([0.25] * 4, abs=0.03)


def test_a_seed_repeats_the_sample_and_layers_share_it():
    text = numbered(3000, 4)
    samplings = [Sampling([100] * 30, 8, CaptureLimits(samples=300), seed) for seed in (1, 1, 2)]
    hidden = [run(sampling, text, 100).train.hidden for sampling in [*samplings, samplings[0]]]
    assert torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0], hidden[2])
    assert torch.equal(hidden[0], hidden[3])


@settings(deadline=None, max_examples=30)
@given(
    hidden=st.integers(1, 64),
    neurons=st.integers(1, 300),
    memory=st.integers(0, 2_000_000),
    samples=st.integers(MINIMUM_TOKENS, 5000),
)
def test_memory_stays_within_the_bound(hidden, neurons, memory, samples):
    limits = CaptureLimits(samples=samples, memory=memory)
    per_token = bytes_per_token(hidden, neurons)
    try:
        sampling = Sampling([500] * 20, per_token, limits)
    except UserError as error:
        assert memory < 2 * MINIMUM_TOKENS * per_token
        assert "memory" in str(error)
        return
    splits = run(sampling, (torch.zeros(10_000, hidden), torch.zeros(10_000, neurons)), 10_000)
    taken = sum(s.hidden.nbytes + s.magnitude.nbytes for s in (splits.train, splits.calibration, splits.test))
    assert taken == sampling.nbytes <= memory


@pytest.mark.parametrize("documents", [[], [100], [20] * 12])
def test_a_text_that_is_too_short_is_refused_with_the_length_it_needs(documents):
    with pytest.raises(UserError, match="at least 512 tokens"):
        Sampling(documents, 7)


def test_so_many_tokens_fill_the_limits():
    limits = CaptureLimits(samples=800, heldout=300)
    samples = run(Sampling([1] * limits.tokens, 7, limits), numbered(limits.tokens, 3), 500)
    assert (samples.train.tokens, samples.calibration.tokens, samples.test.tokens) == (800, 300, 300)


def test_limits_too_small_to_train_on_are_refused():
    with pytest.raises(UserError, match="256"):
        CaptureLimits(samples=100)


def test_magnitudes_keep_what_is_zero_and_are_close():
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-7, 2.0**-16, 0.3, -5.1, 1e9, -1e38])
    encoded = encode_magnitude(values).float()
    assert ((encoded != 0) == (values != 0)).all()
    assert (encoded >= 0).all()
    assert torch.isfinite(encoded).all()
    middle = torch.logspace(-3, 4, 1000)
    assert ((encode_magnitude(-middle).float() - middle).abs() <= 0.125 * middle).all()
