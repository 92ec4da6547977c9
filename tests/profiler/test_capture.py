import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.capture import MINIMUM_TOKENS, Capture, CaptureLimits, encode_magnitude


def run(capture: Capture, texts: list[tuple[torch.Tensor, torch.Tensor]], cut: int, orders=None) -> None:
    """Shows every layer its text in calls of `cut` tokens, rows in the layer's order."""
    for layer, (hidden, activation) in enumerate(texts):
        rows = activation if orders is None else activation[:, orders[layer]]
        for start in range(0, len(hidden), cut):
            capture.ffn(layer, hidden[start : start + cut], rows[start : start + cut], None)


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
    capture = Capture(documents, 2, 2, neurons, limits, seed, orders)
    run(capture, texts, cut, orders)
    held_at_most = total * 0.1 + total / 20 + 1
    for layer in range(2):
        samples = capture.samples(layer)
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
    capture = Capture(documents, 1, 2, 3, seed=5)
    run(capture, [numbered(5000, 3)], 512)
    samples = capture.samples(0)
    of = [set(places(s.hidden) // 50) for s in (samples.train, samples.calibration, samples.test)]
    assert [len(documents_of) for documents_of in of] == [80, 10, 10]
    assert not of[0] & of[1]
    assert not of[0] & of[2]
    assert not of[1] & of[2]


def test_the_sample_is_uniform_over_the_text():
    picked = np.zeros(2000)
    for seed in range(60):
        capture = Capture([100] * 20, 1, 2, 1, CaptureLimits(samples=256, heldout=256), seed)
        run(capture, [numbered(2000, 1)], 2000)
        picked[places(capture.samples(0).train.hidden)] += 1
    quarters = picked.reshape(4, -1).sum(1) / picked.sum()
    assert quarters == pytest.approx([0.25] * 4, abs=0.03)


def test_a_seed_repeats_the_sample_and_layers_share_it():
    texts = [numbered(3000, 4)] * 2
    captures = [Capture([100] * 30, 2, 2, 4, CaptureLimits(samples=300), seed) for seed in (1, 1, 2)]
    for capture in captures:
        run(capture, texts, 100)
    hidden = [capture.samples(0).train.hidden for capture in captures]
    assert torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0], hidden[2])
    assert torch.equal(hidden[0], captures[0].samples(1).train.hidden)


@settings(deadline=None, max_examples=30)
@given(
    layers=st.integers(1, 5),
    hidden=st.integers(1, 64),
    neurons=st.integers(1, 300),
    memory=st.integers(0, 2_000_000),
    samples=st.integers(MINIMUM_TOKENS, 5000),
)
def test_memory_stays_within_the_bound(layers, hidden, neurons, memory, samples):
    limits = CaptureLimits(samples=samples, memory=memory)
    per_token = Capture.bytes_per_token(hidden, neurons)
    try:
        capture = Capture([500] * 20, layers, hidden, neurons, limits)
    except UserError as error:
        assert memory < 2 * MINIMUM_TOKENS * layers * per_token
        assert "memory" in str(error)
        return
    assert capture.nbytes <= memory
    assert capture.nbytes % (layers * per_token) == 0


@pytest.mark.parametrize("documents", [[], [100], [20] * 12])
def test_a_text_that_is_too_short_is_refused_with_the_length_it_needs(documents):
    with pytest.raises(UserError, match="at least 512 tokens"):
        Capture(documents, 1, 2, 3)


def test_limits_too_small_to_train_on_are_refused():
    with pytest.raises(UserError, match="256"):
        CaptureLimits(samples=100)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["hidden", "activation"])
def test_values_that_are_no_numbers_name_the_layer(bad, where):
    capture = Capture([100] * 10, 2, 2, 3)
    hidden, activation = numbered(1000, 3)
    (hidden if where == "hidden" else activation)[:, 1] = bad
    with pytest.raises(UserError, match="layer 1"):
        capture.ffn(1, hidden, activation, None)


def test_magnitudes_keep_what_is_zero_and_are_close():
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-7, 2.0**-16, 0.3, -5.1, 1e9, -1e38])
    encoded = encode_magnitude(values).float()
    assert ((encoded != 0) == (values != 0)).all()
    assert (encoded >= 0).all()
    assert torch.isfinite(encoded).all()
    middle = torch.logspace(-3, 4, 1000)
    assert ((encode_magnitude(-middle).float() - middle).abs() <= 0.125 * middle).all()
