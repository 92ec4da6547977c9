"""Norms and rotary positions on the device, against the reference, over odd shapes and strided views."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import cuda_states, reference

SEEDS = st.integers(0, 1 << 20)


def strided(x: torch.Tensor, padding: int) -> torch.Tensor:
    """The same numbers as a part of wider vectors, as keys are a part of what one product leaves."""
    wide = x.new_full((x.shape[0], x.shape[1] + padding, x.shape[2] + padding), 77.0)
    view = wide[:, : x.shape[1], : x.shape[2]]
    view.copy_(x)
    return view


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 16),
    vectors=st.integers(1, 5),
    width=st.sampled_from([1, 3, 16, 33, 64, 100, 128, 1000, 1024]),
    centred=st.booleans(),
    biased=st.booleans(),
    in_place=st.booleans(),
    padding=st.sampled_from([0, 3]),
    seed=SEEDS,
)
def test_norm(device, tokens, vectors, width, centred, biased, in_place, padding, seed):
    torch.manual_seed(seed)
    x = (torch.randn(tokens, vectors, width) + torch.randn(())) * 10 ** (4 * torch.rand(tokens, vectors, 1) - 2)
    weight, bias = torch.randn(2, width)
    expected = reference.layer_norm(x, weight, bias if biased else None, 1e-5)
    if not centred:
        expected = reference.rms_norm(x, weight, 1e-5) + (bias if biased else 0)
    x, weight, bias = strided(x.to(device), padding), weight.to(device), bias.to(device)
    y = x if in_place else strided(torch.full_like(x, torch.nan), padding)
    alone = [t.clone() for t in x.split(1)]
    cuda_states.norm(x, weight, bias if biased else None, centred, 1e-5, y)
    tolerance = 1e-5 if width >= 16 else 1e-3  # few numbers may be nearly their mean
    torch.testing.assert_close(y.cpu(), expected, atol=tolerance, rtol=tolerance)
    for t, vector in enumerate(alone):
        cuda_states.norm(vector, weight, bias if biased else None, centred, 1e-5, vector)
        assert torch.equal(vector[0], y[t])


def test_eps_is_inside_the_root_and_a_nan_stays_with_its_vector(device):
    x = torch.zeros(3, 2, 8, device=device)
    x[0, 1] = 1e-3
    x[1, 0, 5] = torch.nan
    weight = torch.ones(8, device=device)
    y = torch.full_like(x, torch.nan)
    cuda_states.norm(x, weight, None, False, 1e-6, y)
    assert y[1, 0].isnan().all()
    torch.testing.assert_close(y[0, 1], torch.full((8,), 0.5**0.5, device=device))
    y[1, 0] = 0
    assert not y.isnan().any()


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 16),
    heads=st.sampled_from([1, 2, 5, 8, 13]),
    head_dim=st.sampled_from([2, 7, 10, 64, 80, 128]),
    rest=st.sampled_from([0, 0, 2, 31]),
    padding=st.sampled_from([0, 5]),
    far=st.sampled_from([20, 8192, 1 << 20]),
    seed=SEEDS,
)
def test_rotate(device, tokens, heads, head_dim, rest, padding, far, seed):
    torch.manual_seed(seed)
    half = max(1, (head_dim - rest) // 2)
    frequencies = (10000.0 ** -(torch.arange(half) / half)).to(device)
    positions = torch.randint(0, far, (tokens,), device=device)
    x = torch.randn(tokens, heads, head_dim, device=device)
    expected = reference.rope(x, positions, frequencies)
    cosines, sines = torch.full((2, tokens, half), torch.nan, device=device)
    cuda_states.angles(positions, frequencies, cosines, sines)
    turned = strided(x, padding)
    cuda_states.rotate(turned, cosines, sines)
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=1e-6)
    for t in range(tokens):
        alone = x[t : t + 1].clone()
        cuda_states.rotate(alone, cosines[t : t + 1], sines[t : t + 1])
        assert torch.equal(alone[0], turned[t])


def test_add(device):
    a, b = torch.randn(2, 3, 33, device=device)
    expected = a + b
    cuda_states.add(a, b, a)
    assert torch.equal(a, expected)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(17, 1, 8), torch.ones(8), "1 to 16 tokens"),
        (torch.zeros(2, 1, 8, dtype=torch.float64), torch.ones(8), "float32"),
        (torch.zeros(2, 8, 1).transpose(1, 2)[:, :, ::2], torch.ones(4), "side by side"),
        (torch.zeros(2, 1, 8), torch.ones(7), r"\[8\]"),
        (torch.zeros(2, 1, 8), torch.ones(8, dtype=torch.bfloat16), "float32"),
    ],
)
def test_what_does_not_fit_is_refused(device, x, weight, message):
    with pytest.raises(ValueError, match=message):
        cuda_states.norm(x.to(device), weight.to(device), None, False, 1e-5, x.to(device))


def test_angles_turn_no_more_than_a_head(device):
    with pytest.raises(ValueError, match="heads have 6"):
        cuda_states.rotate(torch.zeros(1, 1, 6, device=device), *torch.zeros(2, 1, 4, device=device))
