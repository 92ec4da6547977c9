import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given as with_examples
from hypothesis import settings

from hybrid.stages.report_data import activity, collect
from hybrid.stages.report_parts import Missing, count, plain, share
from profiler.profile import Profile, compact


def made(seed: int, layers: int, neurons: int, domains: int) -> Profile:
    """A profile of random counts in halves, some neurons and perhaps a layer never active."""
    generator = np.random.default_rng(seed)
    part_tokens = generator.integers(1, 400, (domains, 2))
    parts = generator.integers(0, part_tokens[:, :, None, None] + 1, (domains, 2, layers, neurons))
    parts[..., generator.random((layers, neurons)) < 0.3] = 0
    parts[:, :, 0] *= generator.integers(0, 2)
    active, tokens = parts.sum((0, 1)), int(part_tokens.sum())
    rest = {name: np.minimum(active + 1, tokens) for name in ("named", "union4", "union16")}
    return Profile(
        "s",
        "c",
        tokens,
        active,
        **rest,
        has_predictors=True,
        domains=tuple("abcdefgh"[:domains]),
        part_tokens=tuple((int(a), int(b)) for a, b in part_tokens),
        parts=compact(parts),
    )


def brute_force(chosen_by, on, wanted: float) -> float | None:
    """The share of activations that the hottest neurons give, one neuron after the other."""
    order = sorted(range(len(on)), key=lambda i: (-int(chosen_by[i]), i))
    hottest = order[: max(1, round(wanted * len(on)))]
    total = sum(map(int, on))
    return sum(int(on[i]) for i in hottest) / total if total else None


def average(values) -> float | None:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


@settings(max_examples=15, deadline=None)
@with_examples(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 300), st.integers(1, 3))
def test_curves_are_those_of_brute_force(seed, layers, neurons, domains):
    profile = made(seed, layers, neurons, domains)
    found = activity(profile, "file")
    halves = profile.parts.sum(0, dtype=np.int64)
    for at in (0, len(found.shares) // 2, len(found.shares) - 1):
        wanted = found.shares[at]
        for i in range(layers):
            own = brute_force(profile.active[i], profile.active[i], wanted)
            both = [brute_force(halves[1 - h, i], halves[h, i], wanted) for h in (0, 1)]
            assert found.layers[i].in_sample[at] == pytest.approx(own)
            assert found.layers[i].held_out[at] == pytest.approx(average(both))
        for d, domain in enumerate(found.domains):
            of_domain = profile.parts.sum(1, dtype=np.int64)
            held_out = [
                average([brute_force(halves[1 - h, i], profile.parts[d, h, i], wanted) for h in (0, 1)])
                for i in range(layers)
            ]
            assert domain.curve.held_out[at] == pytest.approx(average(held_out))
            for other, values in domain.chosen_on:
                o = profile.domains.index(other)
                across = [brute_force(of_domain[o, i], of_domain[d, i], wanted) for i in range(layers)]
                assert values[at] == pytest.approx(average(across))


@settings(max_examples=25, deadline=None)
@with_examples(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 700))
def test_the_heat_map_keeps_every_neuron_and_puts_the_hottest_first(seed, layers, neurons):
    profile = made(seed, layers, neurons, 1)
    found = activity(profile, "file")
    bins = found.heat.shape[1]
    assert bins == min(200, neurons)
    assert (np.diff(found.heat, axis=1) <= 1e-12).all()
    sizes = np.diff(np.linspace(0, neurons, bins + 1).astype(int))
    assert (found.heat * sizes).sum(1) == pytest.approx(profile.frequency().sum(1))
    assert found.silent == pytest.approx((profile.active == 0).mean(1))
    assert found.sparsity["union16"] == pytest.approx(profile.union16.mean(1) / profile.tokens)


def test_an_older_profile_has_no_held_out_curve():
    whole = made(0, 2, 50, 1)
    counts = {name: getattr(whole, name) for name in ("active", "named", "union4", "union16")}
    found = activity(Profile("s", "c", whole.tokens, **counts), "file")
    assert found.whole.held_out is None and found.layers[0].held_out is None
    assert found.whole.in_sample[-1] == pytest.approx(1)
    assert "named" not in found.sparsity  # nothing named, so zeros would mislead


def test_what_is_missing_names_its_command(llama_directory):
    data = collect(llama_directory, profile="night", plan="small")
    commands = [
        part.command
        for part in (data.activity, data.predictors, data.placed, data.evaluations, data.thresholds)
        if isinstance(part, Missing)
    ]
    assert [command.split()[1] for command in commands] == ["profile", "profile", "plan", "eval", "calibrate"]
    assert "--name night" in commands[0] and "--name small" in commands[2]
    assert all(str(llama_directory) in command for command in commands)


def test_texts_of_others_become_one_short_line():
    assert plain("a\nb\x00\u202e\ud800c") == "a·b···c"
    assert len(plain("x" * 10**6, 40)) == 40
    assert count(12345) == "12,345" and count("<b>") == "<b>"
    assert (share(0.00051), share(0.123), share(None)) == ("0.051 %", "12.30 %", "-")
