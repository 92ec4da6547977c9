import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.capture import LayerSamples, Split, encode_magnitude
from profiler.predictor_outline import Trial
from profiler.selection import PARTS, Candidate, Target, allocate, ladder, search
from profiler.training import Recipe, mass_at_active, measure, tune_factors
from profiler.training_free import Gates, factors, few_bits

HIDDEN, NEURONS, INNER = 64, 256, 12
QUICK = Recipe(steps=150, batch=256)
TARGET = Target(vector_bytes=2 * HIDDEN, parts=3)


def layer_gates(shift: float = 1.2) -> Gates:
    """Gates that see only twelve directions of the state."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(NEURONS, INNER, generator=generator) @ torch.randn(INNER, HIDDEN, generator=generator)
    return Gates(inner / math.sqrt(INNER * HIDDEN), torch.full((NEURONS,), -shift))


def planted(tokens: int, seed: int, gates: Gates) -> Split:
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return Split(x.bfloat16(), encode_magnitude(torch.relu(x.bfloat16().float() @ gates.weight.T + gates.bias)))


def samples(gates: Gates, train: int = 4000, held: int = 1000) -> LayerSamples:
    return LayerSamples(*(planted(n, seed, gates) for seed, n in enumerate((train, held, held), start=1)))


@pytest.fixture(scope="module")
def tried() -> list[Candidate]:
    return search(samples(layer_gates()), layer_gates(), QUICK, TARGET, 0)


def test_factors_of_the_full_rank_of_the_gates_are_exact():
    gates, split = layer_gates(), planted(500, 9, layer_gates())
    predictor = replace(factors(gates, planted(3000, 8, gates), INNER), threshold=0.0)
    quality = measure(predictor, split)
    assert quality.mass_recall > 0.999
    assert quality.precision > 0.98


def test_factors_are_nearer_to_the_logits_than_the_plain_svd_of_the_weights():
    gates = layer_gates()
    stretch = torch.linspace(0.05, 4, HIDDEN)
    x = (torch.randn(4000, HIDDEN, generator=torch.Generator().manual_seed(1)) * stretch).bfloat16()
    split = Split(x, encode_magnitude(torch.relu(x.float() @ gates.weight.T)))
    ours = factors(Gates(gates.weight), split, 6).logits(x)
    left, values, right = torch.linalg.svd(gates.weight, full_matrices=False)
    plain = x.float() @ ((left[:, :6] * values[:6]) @ right[:6]).T
    exact = x.float() @ gates.weight.T
    assert float((ours - exact).square().mean()) < 0.9 * float((plain - exact).square().mean())


def test_gates_in_four_bits_name_nearly_what_fires():
    gates, split = layer_gates(), planted(500, 9, layer_gates())
    quality = measure(few_bits(gates, "q4_0"), split)
    assert quality.mass_recall > 0.98
    assert quality.precision > 0.8
    assert few_bits(Gates(torch.zeros(8, 40)), "q4_0") is None


def test_the_chosen_one_is_the_smallest_that_reaches_the_target(tried):
    chosen, others = tried[0], tried[1:]
    assert chosen.trial.chosen and not any(c.trial.chosen for c in others)
    assert chosen.reaches(TARGET)
    for other in others:
        assert (
            other.predictor.family == "none" or not other.reaches(TARGET) or other.trial.nbytes >= chosen.trial.nbytes
        )
    assert {c.predictor.family for c in tried} == {"none", "gates", "factors"}


def test_training_makes_a_product_of_a_low_rank_better():
    full = torch.randn(NEURONS, HIDDEN, generator=torch.Generator().manual_seed(3)) / math.sqrt(HIDDEN)
    gates = Gates(full, torch.linspace(-3, 0.5, NEURONS))  # seldom active ones do not matter, often active ones hardly
    data = samples(gates, 20_000)
    near = factors(gates, data.train, 32)
    tuned = tune_factors(near, data.train, replace(QUICK, steps=200), 0)
    assert tuned.rank == 32
    assert mass_at_active(tuned, data.test) > mass_at_active(near, data.test) + 0.005


def test_perceptrons_are_tried_where_they_are_asked_for():
    seen: list[Trial] = []
    target = replace(TARGET, perceptrons=True, most_named=0.9)
    search(samples(layer_gates(), 1000, 300), layer_gates(), replace(QUICK, steps=10), target, 0, seen.append)
    assert {"factors", "perceptron"} < {trial.family for trial in seen}


def test_without_gates_only_perceptrons_are_tried():
    found = search(samples(layer_gates(), 1000, 300), None, replace(QUICK, steps=20), TARGET, 0)
    assert {c.predictor.family for c in found} == {"none", "perceptron"}


def test_what_is_told_of_a_trial_is_what_was_measured(tried):
    data = samples(layer_gates())
    for candidate in tried:
        trial, quality = candidate.trial, measure(candidate.predictor, data.test)
        assert trial.named_at_keep == quality.named
        finished = quality.active * quality.recall
        rows = NEURONS * 2 * HIDDEN * (quality.named + 2 * finished)
        assert trial.bytes_per_token == pytest.approx(candidate.predictor.nbytes + rows)
        assert quality.mass_recall > 0.97
        assert candidate.predictor.family == "none" or 0.5 < trial.mass_at_active <= 1


def test_where_nearly_all_is_active_gating_is_cheaper_than_predicting():
    gates = layer_gates(-2.5)
    chosen = search(samples(gates, 1000, 300), gates, replace(QUICK, steps=40), TARGET, 0)[0]
    assert chosen.quality.active > 0.9
    assert chosen.predictor.family == "none"
    assert chosen.quality.mass_recall == 1


def test_one_rank_is_trained_where_it_is_asked_for():
    (only,) = search(samples(layer_gates(), 600, 200), layer_gates(), QUICK, replace(TARGET, rank=32), 0)
    assert (only.predictor.family, only.predictor.rank) == ("factors", 32)
    assert only.predictor.weight_formats == ("q8_0", "q8_0")


def test_a_ladder_of_ranks_rises_in_blocks_to_half_the_width():
    assert ladder(256, 1024) == [32, 64, 96]
    ranks = ladder(4096, 11008)
    assert ranks[0] == 32 and 1024 < ranks[-1] <= 2048
    assert all(rank % 32 == 0 for rank in ranks)
    assert all(1 < b / a <= 2 for a, b in itertools.pairwise(ranks))
    assert ladder(16, 16) == [32]


def candidate(nbytes: int, named: float, base: Candidate) -> Candidate:
    return replace(base, trial=replace(base.trial, nbytes=nbytes, named_at_keep=named, chosen=False))


def sizes(predictors) -> list[int]:
    return [trial.nbytes for trials in predictors.trials for trial in trials if trial.chosen]


def test_a_budget_takes_the_bytes_from_the_layers_that_miss_them_least(tried):
    base = tried[0]
    cheap = [candidate(100, 0.10, base), candidate(50, 0.11, base)]
    dear = [candidate(100, 0.10, base), candidate(50, 0.5, base)]
    assert sizes(allocate("d", [cheap, dear], None)) == [100, 100]
    assert sizes(allocate("d", [cheap, dear], 150)) == [50, 100]
    assert sizes(allocate("d", [cheap, dear], 100)) == [50, 50]
    with pytest.raises(UserError, match="smallest that were tried take 100 B"):
        allocate("d", [cheap, dear], 99)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 1)), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    st.integers(4, 200),
)
def test_no_other_choice_within_the_budget_names_fewer(tried, layers, budget):
    found = [[candidate(4096 * size, named, tried[0]) for size, named in layer] for layer in layers]
    budget *= 4096
    choices = [c for c in itertools.product(*found) if sum(one.trial.nbytes for one in c) <= budget]
    if not choices:
        with pytest.raises(UserError):
            allocate("d", found, budget)
        return
    predictors = allocate("d", found, budget)
    picked = [trial for trials in predictors.trials for trial in trials if trial.chosen]
    assert sum(t.nbytes for t in picked) <= budget
    parts = [c for c in choices if sum(-(-one.trial.nbytes * PARTS // budget) for one in c) <= PARTS]  # as it counts
    fewest = min((sum(one.trial.named_at_keep for one in c) for c in parts), default=math.inf)
    assert sum(t.named_at_keep for t in picked) <= fewest + 1e-9


def test_a_set_holds_the_chosen_ones_and_all_trials(tried):
    predictors = allocate("digest", [tried, tried], None)
    assert [p.nbytes for p in predictors.layers] == [tried[0].predictor.nbytes] * 2
    assert all(len(trials) == len(tried) and sum(t.chosen for t in trials) == 1 for trials in predictors.trials)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"most_named": 0.0}])
def test_impossible_targets_are_refused(wrong):
    with pytest.raises(UserError):
        replace(TARGET, **wrong)
