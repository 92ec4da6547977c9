"""Shares of a layer against counts written out, whatever pieces its tokens come in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.coverage import Coverage, Tally


def planted(seed, tokens=37, neurons=11, active=0.3):
    """Activations of which a share is not zero, one token without any, and what something names."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, neurons, generator=generator) * 3 ** torch.randn(tokens, 1, generator=generator)
    values[torch.rand(tokens, neurons, generator=generator) > active] = 0
    values[tokens // 2] = 0
    return values, torch.rand(tokens, neurons, generator=generator) < 0.4


def by_hand(values, named):
    mass, named = values.abs().double().numpy(), named.numpy()
    is_active = mass > 0
    both = sum(bool(a and n) for a, n in zip(is_active.flat, named.flat, strict=True))
    shares = [row[chosen].sum() / row.sum() for row, chosen in zip(mass, named, strict=True) if row.sum()]
    return {
        "tokens": len(mass),
        "active": is_active.mean(),
        "named": named.mean(),
        "recall": both / is_active.sum() if is_active.any() else 1,
        "precision": both / named.sum() if named.any() else 1,
        "mass_recall": np.mean(shares) if shares else 1,
        "dropped_mass": mass[~named].sum() / mass.sum() if mass.any() else 0,
    }


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    active=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    cuts=st.lists(st.integers(0, 37), max_size=4).map(sorted),
)
def test_the_shares_are_those_of_a_count_by_hand_in_any_pieces(seed, active, cuts):
    values, named = planted(seed, active=active)
    tally = Tally()
    for start, stop in zip([0, *cuts], [*cuts, 37], strict=True):
        tally.add(values[start:stop].abs(), named[start:stop])
    found = vars(tally.quality())
    for name, share in by_hand(values, named).items():
        assert found[name] == pytest.approx(share, abs=1e-6), name


def test_where_nothing_is_named_all_mass_is_dropped():
    values, named = planted(0)
    tally = Tally()
    tally.add(values.abs(), torch.zeros_like(named))
    found = tally.quality()
    assert (found.recall, found.mass_recall, found.dropped_mass, found.named) == (0, 0, 1, 0)
    assert found.precision == 1


def test_where_nothing_names_all_are():
    values, _ = planted(0)
    coverage = Coverage(2)
    coverage.document()
    for layer in range(2):
        coverage.ffn(layer, torch.zeros(len(values), 4), values, None)
    for found in coverage.quality():
        assert (found.named, found.recall, found.mass_recall, found.dropped_mass) == (1, 1, 1, 0)
        assert found.precision == pytest.approx(found.active) == pytest.approx((values != 0).float().mean().item())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_refused(value):
    values, named = planted(0)
    values[3, 3] = value
    tally = Tally()
    tally.add(values.abs(), named)
    with pytest.raises(UserError, match="not finite"):
        tally.quality()
    with pytest.raises(UserError, match="too short"):
        Tally().quality()
