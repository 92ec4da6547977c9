"""The search for thresholds within a budget, on curves and losses that are known by formula."""

import itertools
import math

import numpy as np
import pytest
import torch

from hybrid.stages.price_search import Trier, at_price, price_knob, search, share_knob
from hybrid.stages.quality import Measured, Passage, parts_of
from profiler.artifacts import UserError
from profiler.curve import Curve, LinearBins
from profiler.matrix import Matrix
from profiler.naming import LogitCurves, bins_for
from profiler.predictor import Predictor

DOCUMENTS, TOKENS = 12, 40


def curve(seed: int, skew: float) -> Curve:
    """Scores between -4 and 4; the higher, the more mass."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(4000, generator=generator).clamp(-3.9, 3.9)
    found = Curve(LinearBins(-4.0, 4.0, 0.25))
    found.add(scores, torch.exp(skew * scores))
    return found


def passages() -> list[Passage]:
    return [Passage(list(range(TOKENS + 1)), document) for document in range(DOCUMENTS)]


class FakeModel:
    """Loses perplexity in proportion to the mass that is dropped, and unlike from document to document."""

    def __init__(self, curves, cost):
        self.curves, self.cost, self.runs = curves, cost, []
        self.uneven = 1 + 0.2 * np.sin(np.arange(DOCUMENTS))

    def losses(self, thresholds):
        dropped = sum(1 - c.kept(t).mass for c, t in zip(self.curves, thresholds, strict=True) if c is not None)
        return TOKENS * (3 + self.cost * dropped * self.uneven)

    def measure(self, thresholds):
        self.runs.append(tuple(thresholds))
        return self.measured(self.losses(thresholds))

    def measured(self, losses):
        zeros = np.zeros(DOCUMENTS)
        return Measured(losses, zeros.astype(np.int64), zeros, np.zeros(DOCUMENTS * TOKENS, dtype=np.float32))

    @property
    def trier(self):
        return Trier(
            self.curves, self.measure, self.measured(np.full(DOCUMENTS, 3.0 * TOKENS)), passages(), parts_of(passages())
        )


def test_at_one_price_no_other_thresholds_keep_more_mass_with_as_few_neurons():
    curves = [curve(0, 1.0), curve(1, 0.3)]
    thresholds = at_price(curves, 1.5, 0.0)
    kept = [c.kept(t) for c, t in zip(curves, thresholds, strict=True)]
    share, mass = sum(k.share for k in kept), sum(k.mass for k in kept)
    for pair in itertools.product(curves[0].edges, curves[1].edges):
        others = [c.kept(t) for c, t in zip(curves, pair, strict=True)]
        if sum(k.share for k in others) <= share:
            assert sum(k.mass for k in others) <= mass + 1e-9


def test_a_dearer_price_names_less():
    curves = [curve(0, 1.0), curve(1, 0.3)]
    shares = [
        sum(c.kept(t).share for c, t in zip(curves, at_price(curves, p, 0.0), strict=True)) for p in (0.1, 1, 3, 9)
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1] + 0.5


def test_every_layer_keeps_the_least_mass():
    curves = [curve(0, 1.0), curve(1, 0.3)]
    for price in (1.0, 100.0):
        assert all(c.kept(t).mass >= 0.95 for c, t in zip(curves, at_price(curves, price, 0.95), strict=True))
    assert at_price([None, curves[0]], 1.0, 0.0)[0] == -math.inf


@pytest.mark.parametrize("knob", [price_knob, share_knob])
def test_what_is_found_is_within_the_budget_and_a_little_further_is_not(knob):
    model = FakeModel([curve(0, 1.0), None, curve(1, 0.3)], cost=0.1)
    found = search(model.trier, knob(model.curves), 0.01)
    assert found.found.upper <= 1.01
    assert found.found.interval.low < found.found.ratio < found.found.upper
    assert found.found.shares[1] == found.found.masses[1] == 1
    beyond = [s for s in found.tried if s.knob > found.found.knob]
    assert beyond and all(s.upper > 1.01 for s in beyond)
    assert found.found.share < 0.98
    assert sorted(s.knob for s in found.tried) == [s.knob for s in found.tried]
    assert len(model.runs) == len(found.tried)


def test_prices_find_a_cheaper_setting_than_equal_shares():
    curves = [curve(0, 1.5), curve(1, 0.1)]
    shares = [search(FakeModel(curves, 0.1).trier, knob(curves), 0.01).found.share for knob in (price_knob, share_knob)]
    assert shares[0] < shares[1] - 0.01


def test_a_budget_that_nothing_keeps_is_refused_and_one_that_everything_keeps_takes_the_furthest():
    model = FakeModel([curve(0, 1.0)], cost=0.0)
    assert search(model.trier, price_knob(model.curves), 0.001).found.masses[0] < 0.05
    worse = FakeModel([curve(0, 1.0)], cost=0.1)
    worse.losses = lambda thresholds: np.full(DOCUMENTS, 3.1 * TOKENS)
    with pytest.raises(UserError, match=r"most careful ones already cost 10\.5"):
        search(worse.trier, price_knob(worse.curves), 0.001)


def test_logits_are_sorted_by_what_each_predictor_reads():
    generator = torch.Generator().manual_seed(0)

    def predictor(reads):
        fc1, fc2 = torch.randn(4, 8, generator=generator).half(), torch.randn(20, 4, generator=generator).half()
        return Predictor.low_rank(Matrix.of(fc1), Matrix.of(fc2), 0.0, reads=reads)

    predictors = [predictor("ffn_input"), predictor("previous_ffn_input"), predictor("residual"), Predictor.none(8, 20)]
    orders = [torch.randperm(20, generator=generator).numpy() for _ in predictors]
    tap = LogitCurves(predictors, orders)
    inputs = [torch.randn(50, 8, generator=generator) for _ in predictors]
    residuals = [torch.randn(50, 8, generator=generator) for _ in predictors]
    activations = [torch.randn(50, 20, generator=generator).relu() for _ in predictors]
    for layer in range(4):
        tap.residual(layer, residuals[layer])
        tap.ffn(layer, inputs[layer], activations[layer], None)
    read = [inputs[0], inputs[0], residuals[2]]
    assert tap.curves[3] is None
    for layer in range(3):
        found, by_row = tap.curves[layer], predictors[layer].logits(read[layer])[:, torch.from_numpy(orders[layer])]
        share = activations[layer] / activations[layer].sum(1, keepdim=True).clamp(min=1e-30)
        for threshold in found.edges[::512]:
            above = by_row > threshold
            assert found.kept(threshold).share == pytest.approx(float(above.float().mean()), abs=1e-6)
            assert found.kept(threshold).mass == pytest.approx(float(share[above].sum() / share.sum()), abs=1e-5)


def test_bins_leave_room_on_both_sides():
    bins = bins_for(torch.tensor([[-3.0, 5.0]]))
    assert bins.low <= -7 and bins.high >= 9
    assert 1000 < len(bins.edges) < 10000
