"""Curves against sorting all scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.curve import Bins, Curve, LinearBins, LogBins, cutoffs_for

LINEAR = LinearBins(-4.0, 4.0, 1 / 32)


def sample(bins: Bins, seed: int, zeros: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that the bins are for, some of them zero or exactly at an edge, with mass."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(50, 40, generator=generator) * 2
    scores[torch.rand(scores.shape, generator=generator) < 0.1] = 0.75
    scores[torch.rand(scores.shape, generator=generator) < zeros] = 0
    if isinstance(bins, LogBins):
        scores = scores.abs()
    return scores, scores.abs() * torch.rand(scores.shape, generator=generator)


@settings(deadline=None, max_examples=60)
@given(
    bins=st.sampled_from([LogBins(), LogBins(2), LINEAR]),
    seed=st.integers(0, 99),
    zeros=st.sampled_from([0.0, 0.6]),
    share=st.floats(0, 1),
    at=st.floats(-5, 5, width=32),
)
def test_a_curve_says_what_lies_above_its_edges(bins: Bins, seed: int, zeros: float, share: float, at: float) -> None:
    scores, mass = sample(bins, seed, zeros)
    curve = Curve(bins)
    for part, part_mass in zip(scores.split(17), mass.split(17), strict=True):
        curve.add(part, part_mass)
    assert curve.total == scores.numel()

    def truly(threshold: float) -> tuple[float, float]:
        above = scores > threshold
        return float(above.double().mean()), float(mass[above].double().sum() / mass.double().sum())

    by_share, by_mass = curve.threshold_for_share(share), curve.threshold_for_mass(share)
    for threshold in (by_share, by_mass, at):
        edge = curve.edges[np.searchsorted(curve.edges, threshold)]
        kept = curve.kept(threshold)
        assert (kept.share, kept.mass) == pytest.approx(truly(float(edge)), abs=1e-9)
    assert truly(by_share)[0] <= share + 1e-9
    lower = curve.edges[curve.edges < by_share]
    assert not len(lower) or truly(float(lower[-1]))[0] > share
    higher = curve.edges[curve.edges > by_mass]
    assert truly(by_mass)[1] >= share - 1e-9 or by_mass == curve.edges[0]
    assert truly(float(higher[0]))[1] < share + 1e-9 if len(higher) else share < 1e-9


@settings(deadline=None, max_examples=100)
@given(score=st.floats(0, width=32, allow_infinity=False), bits=st.integers(0, 9))
def test_bins_of_any_float_are_narrow_by_proportion(score: float, bits: int) -> None:
    bins = LogBins(bits)
    place, edges = int(bins.index(torch.tensor([score]))), bins.edges
    assert edges[place] >= score
    assert place == 0 or edges[place - 1] < score
    if 2.0**-126 <= score <= 2.0**126:  # below, all bins are as wide; above, one ends in infinity
        assert edges[place] <= score * (1 + 2.0**-bits)
    assert len(edges) <= 255 * 2**bits + 1
    assert np.array_equal(edges, edges.astype(np.float32))


@settings(deadline=None, max_examples=100)
@given(score=st.floats(width=32, allow_nan=False))
def test_linear_bins_hold_what_lies_between_their_edges(score: float) -> None:
    place, edges = int(LINEAR.index(torch.tensor([score]))), LINEAR.edges
    assert edges[place] >= score
    assert place == 0 or edges[place - 1] < score
    assert (edges[0], edges[-2], edges[-1]) == (-4.0, 4.0, float("inf"))


def test_the_cutoff_of_a_layer_with_enough_zeros_is_zero() -> None:
    curves = [Curve(LogBins()) for _ in range(2)]
    for curve, scores in zip(curves, (torch.tensor([0.0, 0, 0, 5]), torch.tensor([1.0, 2, 3, 4])), strict=True):
        curve.add(scores, scores)
    assert cutoffs_for(curves, 0.5) == (0.0, 2.0)
    assert cutoffs_for(curves, 1.0) == (5.0, 4.0)
    assert cutoffs_for(curves, 0.0) == (0.0, 0.0)
    assert curves[1].kept(2.0).mass == pytest.approx(0.7)
    assert curves[0].threshold_for_mass(1.0) == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("bins", [LogBins(), LINEAR])
@pytest.mark.parametrize(("score", "mass"), [(float("nan"), 1.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_what_is_not_finite_is_refused(bins: Bins, score: float, mass: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        Curve(bins).add(torch.tensor([1.0, score]), torch.tensor([1.0, mass]))


def test_without_mass_all_of_it_is_kept() -> None:
    curve = Curve(LogBins())
    with pytest.raises(UserError, match="too short"):
        curve.kept(1.0)
    curve.add(torch.ones(3), torch.zeros(3))
    assert curve.kept(2.0).mass == 1
