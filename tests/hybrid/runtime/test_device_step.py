"""A step on a device and the host against the same step on the host: every kind of layer, format, mode and family.

The device's operators run under Triton's interpreter. With 16-bit weights both differ by summation order alone. With
weights in blocks a last bit may make an 8-bit code fall to its neighbour, a 127th of the greatest value of its block
away, and what follows differs as much; see `tests/hybrid/model/test_recorded.py`.
"""

import logging
from dataclasses import replace

import pytest
import torch

from hybrid.runtime.device_step import DeviceStep
from hybrid.runtime.sizes import BUFFER_SHARE, step_bytes
from hybrid.store.directory import ModelDirectory
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_outline import PredictorQuality

CONTEXT = 64  # of the plans
CLOSE = 1e-4  # of the logits' scale
ROUNDED = 0.06
IDS = [5, 90, 17, 230]
FAMILIES = {  # and what differs from what they are by default
    "opt": {},
    "falcon": {},
    "falcon of two norms": {"num_ln_in_parallel_attn": 2, "bias": True},
    "qwen3": {},
    "qwen2": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 3, "num_key_value_heads": 1},
    "nemotron": {"partial_rotary_factor": 0.5, "mlp_bias": True},
    "bamboo": {},
    "prosparse": {"hidden_act_param": 0.05},
}
BOTH = ("gpu:0.4g 0.6c", "cpu:0.2g 0.5c 0.3g")  # attention on each unit, rows on both


def gaps_of(found, expected):
    """Largest difference of each token's logits, in shares of the logits' scale."""
    scale = expected.abs().max()
    assert scale > 0.1, "logits near zero would agree whatever was computed"
    return (found - expected).abs().amax(1) / scale


def check(one, two, close=CLOSE, singles=0):
    """A step of several tokens, and some of one token each, one after the other."""
    assert isinstance(two.machine.recorded, DeviceStep)
    assert gaps_of(two.logits(IDS), one.logits(IDS)).max() < close
    if singles:
        ids = IDS[:singles]
        assert gaps_of(two.logits(ids, one_by_one=True), one.logits(ids, one_by_one=True)).max() < close
    directory = two.directory
    assert two.machine.recorded.bytes <= step_bytes(directory.spec, directory.weight_format, two.context)
    done, expected = two.ledger.evaluation, one.ledger.evaluation
    assert done.gpu.gated + done.cpu.gated == expected.cpu.gated
    if close == CLOSE:
        assert abs(done.gpu.finished + done.cpu.finished - expected.cpu.finished) <= 1  # an activation of nearly zero
    return done


@pytest.mark.parametrize(
    ("layers", "ends"),
    [
        (["gpu:1g"], "gpu gpu"),
        (["gpu:0.4g 0.6c"], "cpu gpu"),
        (["cpu:0.4g 0.6c"], "gpu cpu"),
        (["gpu:1c", "cpu:1g"], "cpu cpu"),
        (["cpu:1c", "gpu:1g"], "cpu cpu"),
        (["gpu:0.2g 0.3c 0.2g 0.3c", "cpu:0.3c 0.2g 0.2c 0.3g"], "gpu gpu"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value.replace(" ", "-"),
)
def test_layers_of_every_kind(tiny, one_unit, two_units, layers, ends):
    path, (embeddings, head) = tiny("llama"), ends.split()
    with (
        one_unit(path, "dense") as one,
        two_units(path, *layers, mode="dense", embeddings=embeddings, head=head) as two,
    ):
        done, spec = check(one, two, singles=2), one.directory.spec
        shares = [float(part[:-1]) for layer in layers for part in layer.split(":")[1].split() if part[-1] == "g"]
        on_gpu = done.gpu.gated / (done.tokens * spec.n_layers * spec.n_neurons)
        assert on_gpu == pytest.approx(sum(shares) / len(layers), abs=0.03)
        both = any("g" in layer.split(":")[1] and "c" in layer.split(":")[1] for layer in layers)
        assert (done.overlap.smaller > 0) == both


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tiny, one_unit, two_units, family):
    path = tiny(family.split()[0], **FAMILIES[family])
    with ModelDirectory.open(path) as directory:
        mode = "exact" if directory.spec.has_exact_zeros else "dense"
    with one_unit(path, mode) as one, two_units(path, *BOTH, mode=mode, embeddings="gpu") as two:
        check(one, two)


@pytest.mark.parametrize("weight_format", ["f16", "q8_0", "q4_0"])
def test_every_format(tiny, one_unit, two_units, weight_format):
    path = tiny("llama", weight_format)
    with one_unit(path) as one, two_units(path, *BOTH, embeddings="gpu", head="gpu") as two:
        check(one, two, CLOSE if weight_format == "f16" else ROUNDED)


def test_mode_threshold(tiny, one_unit, two_units):
    path, cutoffs = tiny("qwen2"), (0.05, 0.02)
    with (
        one_unit(path, "threshold", cutoffs=cutoffs) as one,
        two_units(path, *BOTH, mode="threshold", cutoffs=cutoffs) as two,
    ):
        done = check(one, two)
        assert 0 < done.gpu.finished < done.gpu.gated
        for engine in (one, two):
            engine.set_cutoffs((0.2, 0.2))
        assert gaps_of(two.logits(IDS[:1]), one.logits(IDS[:1])).max() < CLOSE


# Of both layers: family, and the state that it reads.
KINDS = (
    (("perceptron", "residual"), ("factors", "previous_ffn_input")),
    (("gates", "ffn_input"), ("none", "ffn_input")),
    (("none", "residual"), ("gates", "previous_ffn_input")),
)


def predictors_of(directory, kinds, weight_format="f16"):
    """Predictors that name about half of the rows, but for those of the family none."""
    spec, generator = directory.spec, torch.Generator().manual_seed(1)

    def matrix(rows, columns):
        return Matrix.quantised(torch.randn(rows, columns, generator=generator), weight_format)

    def predictor(family, reads):
        if family == "none":
            return Predictor.none(spec.hidden_size, spec.n_neurons)
        if family == "gates":
            bias = torch.randn(spec.n_neurons, generator=generator)
            return Predictor.gates(matrix(spec.n_neurons, spec.hidden_size), 0.0, bias=bias, reads=reads)
        low_rank = matrix(32, spec.hidden_size), matrix(spec.n_neurons, 32)
        return Predictor.low_rank(*low_rank, 0.0, family=family, reads=reads)

    layers = tuple(predictor(*kind) for kind in kinds)
    return PredictorSet(directory.source_digest, layers, (PredictorQuality(0, 1, 1, 1, 1, 1),) * spec.n_layers)


@pytest.mark.parametrize(
    ("kinds", "layers"),
    [
        (KINDS[0], BOTH),
        (KINDS[0], BOTH[1:]),
        (KINDS[2], BOTH[:1]),
        (KINDS[2], ("cpu:1c", "gpu:0.5g 0.5c")),
    ],
    ids=["to the host", "on the host", "on the device", "to the device"],
)
def test_predictors_that_read_any_state_on_any_unit(tiny, one_unit, two_units, kinds, layers):
    path = tiny("llama")
    with ModelDirectory.open(path) as directory:
        predictors = predictors_of(directory, kinds)
    with (
        one_unit(path, "predicted", predictors=predictors) as one,
        two_units(path, *layers, mode="predicted", predictors=predictors) as two,
    ):
        check(one, two)


def test_predictors_of_every_family_and_in_blocks(tiny, one_unit, two_units):
    path = tiny("llama", "q8_0")
    with ModelDirectory.open(path) as directory:
        predictors = predictors_of(directory, KINDS[1], "q8_0")
    with (
        one_unit(path, "predicted", predictors=predictors) as one,
        two_units(path, *BOTH[::-1], mode="predicted", predictors=predictors) as two,
    ):
        gaps = gaps_of(two.logits(IDS), one.logits(IDS))
        assert gaps.median() < ROUNDED, "a row named otherwise changes what follows"
        named = two.ledger.evaluation
        assert named.gpu.gated + named.cpu.gated == pytest.approx(one.ledger.evaluation.cpu.gated, rel=0.02)


@pytest.mark.parametrize("mode", ["exact", "predicted"])
def test_the_same_bits_in_every_run_and_whether_or_not_both_units_compute_at_once(tiny, two_units, mode):
    path = tiny("llama")
    with ModelDirectory.open(path) as directory:
        predictors = predictors_of(directory, KINDS[0]) if mode == "predicted" else None
    found = []
    for overlap in (True, False):
        with two_units(path, *BOTH, mode=mode, predictors=predictors, overlap=overlap) as engine:
            found += [engine.logits(IDS[:2]), engine.logits(IDS[:2])]
            done = engine.ledger.evaluation.overlap
            assert done.near > 0
            assert done.far > 0
            assert done.hidden <= done.smaller
    assert all(torch.equal(logits, found[0]) for logits in found[1:])


def test_sixteen_tokens_have_the_bits_that_each_has_alone(tiny, one_unit, two_units):
    path, ids = tiny("llama"), list(range(40, 56))
    with one_unit(path) as one, two_units(path, *BOTH, embeddings="gpu", head="gpu") as two:
        states = two.hidden_states(ids)
        assert gaps_of(states, one.hidden_states(ids)).max() < CLOSE
        assert torch.equal(two.hidden_states(ids[:3], one_by_one=True), states[:3])


@pytest.mark.parametrize("why", ["a small budget", "a plan from before"])
def test_torch_computes_steps_that_a_plan_has_no_room_for(tiny, one_unit, two_units, plan_layers, caplog, why):
    path = tiny("llama")
    with ModelDirectory.open(path) as directory:
        size = step_bytes(directory.spec, directory.weight_format, CONTEXT)
    vram = int(size / BUFFER_SHARE) + (100 if why == "a plan from before" else -100)
    with one_unit(path) as one, caplog.at_level(logging.WARNING):
        if why == "a small budget":
            two = two_units(path, *BOTH, vram=vram)
        else:
            plan = plan_layers(path, *BOTH, mode="exact", vram=vram)
            gpu = {**plan.bytes["gpu"], "buffers": plan.bytes["gpu"]["buffers"] - size}
            plan = replace(plan, bytes={**plan.bytes, "gpu": gpu})
            two = two_units(path, plan=plan)
        with two:
            assert two.machine.recorded is None
            assert two.machine.units["gpu"].used["buffers"] == two.options.plan.bytes["gpu"]["buffers"]
            assert gaps_of(two.logits(IDS), one.logits(IDS)).max() < CLOSE
    assert "plan anew, with a larger --vram" in caplog.text
