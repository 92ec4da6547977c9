import pytest
import torch

from profiler.artifacts import UserError
from profiler.formats import vector_bytes
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_outline import PredictorQuality, Trial


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_those_of_the_formula(dtype, make_predictor):
    predictor, x = make_predictor(dtype=dtype), torch.randn(4, 6)
    fc1, fc2 = predictor.fc1.data.double(), predictor.fc2.data.double()
    for token in range(4):
        bottleneck = [max(0.0, float(fc1[r] @ x[token].double())) for r in range(3)]
        for neuron in range(10):
            logit = sum(b * float(fc2[neuron, r]) for r, b in enumerate(bottleneck))
            assert float(predictor.logits(x)[token, neuron]) == pytest.approx(logit, abs=1e-5)
            if abs(logit - 0.25) > 1e-4:
                assert bool(predictor.named(x)[token, neuron]) == (logit > 0.25)


def test_what_a_token_names_does_not_depend_on_its_neighbours(make_predictor):
    predictor, x = make_predictor(), torch.randn(16, 6)
    alone = torch.cat([predictor.named(x[i : i + 1]) for i in range(16)])
    assert torch.equal(predictor.named(x), alone)


def test_infinite_thresholds_name_nothing_or_everything(make_predictor):
    x = torch.randn(3, 6)
    assert not make_predictor(threshold=float("inf")).named(x).any()
    assert make_predictor(threshold=float("-inf")).named(x).all()


def test_sizes_are_counted(make_predictor, make_set):
    small = make_predictor()
    assert small.nbytes == 2 * (3 * 6 + 10 * 3)
    assert make_set().nbytes == 2 * (48 + (5 * 6 + 10 * 5) + 48)
    assert (small.rank, small.hidden, small.neurons) == (3, 6, 10)
    gates = Predictor.gates(Matrix.quantised(torch.randn(10, 64), "q4_0"), 0.0, bias=torch.zeros(10))
    assert (gates.rank, gates.hidden, gates.neurons) == (0, 64, 10)
    assert gates.nbytes == 10 * vector_bytes("q4_0", 64) + 40
    assert Predictor.none(64, 10).nbytes == 0


def test_silenced_predictors_name_nothing_and_leave_the_others_alone(make_set):
    predictors, x = make_set(), torch.randn(8, 6)
    silent = predictors.silenced()
    assert not any(p.named(x).any() for p in silent.layers)
    assert predictors.layers[0].named(x).any()
    assert silent.source_digest == predictors.source_digest


def test_quantised_predictors_are_half_as_large_and_name_nearly_the_same(make_wide, make_set):
    predictors = make_set(make_wide(), make_wide(seed=1, threshold=float("inf")))
    small, x = predictors.quantised(), torch.randn(200, 64)
    assert small.layers[0].weight_formats == ("q8_0", "q8_0")
    assert small.nbytes == predictors.nbytes * 17 // 32
    assert [p.threshold for p in small.layers] == [0.25, float("inf")]
    expected, found = predictors.layers[0].logits(x), small.layers[0].logits(x)
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
    assert float((small.layers[0].named(x) != predictors.layers[0].named(x)).float().mean()) < 0.02
    assert small.quantised().layers[0].fc2 is small.layers[0].fc2


@pytest.mark.parametrize(
    ("sizes", "formats"), [({"hidden": 60, "rank": 32}, ("f16", "q8_0")), ({"hidden": 64, "rank": 24}, ("q8_0", "f16"))]
)
def test_matrices_that_are_no_whole_blocks_stay_as_they_are(sizes, formats, make_predictor):
    assert make_predictor(**sizes).quantised().weight_formats == formats


def test_fewer_bits_are_left_as_they_are():
    gates = Predictor.gates(Matrix.quantised(torch.randn(10, 64), "q4_0"), 0.0)
    assert gates.quantised().fc2 is gates.fc2


def test_factors_are_a_product_without_relu_and_gates_one_matrix():
    fc1, fc2, x, bias = torch.randn(3, 6).half(), torch.randn(10, 3).half(), torch.randn(7, 6), torch.randn(10)
    factors = Predictor.low_rank(Matrix.of(fc1), Matrix.of(fc2), 0.5, family="factors", bias=bias)
    product = x @ fc1.float().T @ fc2.float().T + bias
    torch.testing.assert_close(factors.logits(x), product)
    assert torch.equal(factors.named(x), factors.logits(x) > 0.5)
    gates = Predictor.gates(Matrix.of(torch.randn(10, 6).half()), 0.25, bias=bias)
    torch.testing.assert_close(gates.logits(x), x @ gates.fc2.data.float().T + bias)


def test_no_predictor_names_everything_or_when_silenced_nothing(make_set):
    x, none = torch.randn(4, 6), Predictor.none(6, 10)
    assert none.named(x).shape == (4, 10) and none.named(x).all()
    silent = make_set(none).silenced().layers[0]
    assert not silent.named(x).any()
    with pytest.raises(ValueError, match="no logits"):
        none.logits(x)


def test_a_set_is_for_one_size_of_model(make_predictor, make_set):
    predictors = make_set(make_predictor(), Predictor.none(6, 10))
    assert predictors.fits(2, 6, 10)
    assert not any(predictors.fits(*sizes) for sizes in ((1, 6, 10), (2, 7, 10), (2, 6, 11)))


def zeros(*shape):
    return Matrix.of(torch.zeros(*shape).half())


@pytest.mark.parametrize(
    ("fc1", "fc2", "threshold"),
    [
        (zeros(3, 6), zeros(10, 4), 0.0),
        (zeros(0, 6), zeros(10, 3), 0.0),
        (zeros(3, 6), zeros(0, 3), 0.0),
        (zeros(3, 6), zeros(10, 3), float("nan")),
    ],
)
def test_impossible_predictors_are_refused(fc1, fc2, threshold):
    with pytest.raises(UserError, match="predictor"):
        Predictor.low_rank(fc1, fc2, threshold)


@pytest.mark.parametrize(
    "wrong",
    [
        {"family": "oracle"},
        {"reads": "tea leaves"},
        {"family": "gates"},
        {"family": "none"},
        {"hidden": 7},
        {"neurons": 9},
        {"bias": torch.zeros(9)},
        {"bias": torch.zeros(10).half()},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(wrong):
    parts = {"family": "perceptron", "hidden": 6, "neurons": 10, "fc1": zeros(3, 6), "fc2": zeros(10, 3)}
    Predictor(**parts, threshold=0.0)
    with pytest.raises(UserError, match="predictor"):
        Predictor(**(parts | {"threshold": 0.0} | wrong))


def test_a_set_has_a_quality_for_each_layer(make_predictor, make_set):
    good = make_set(make_predictor())
    for layers, quality in ((good.layers, good.quality * 2), ((), ())):
        with pytest.raises(UserError, match="per layer"):
            PredictorSet("d", layers, quality)
    with pytest.raises(UserError, match="every layer or for none"):
        make_set(make_predictor(), make_predictor(), trials=((),))
    with pytest.raises(UserError, match="shares"):
        PredictorQuality(100, 0.1, 0.1, 1.5, 0.5, 0.5)


def test_the_first_layer_has_none_before_it(make_predictor, make_set):
    ahead = Predictor.low_rank(zeros(3, 6), zeros(10, 3), 0.0, reads="previous_ffn_input")
    assert make_set(make_predictor(), ahead).fits(2, 6, 10)
    assert not make_set(ahead, make_predictor()).fits(2, 6, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"family": "<script>"},
        {"rank": -1},
        {"rank": "8"},
        {"nbytes": 10**400},
        {"mass_at_active": 1.5},
        {"named_at_keep": float("nan")},
        {"bytes_per_token": float("inf")},
        {"weight_formats": (1,)},
    ],
)
def test_what_was_tried_has_figures_in_range(wrong):
    good = {"family": "gates", "rank": 0, "weight_formats": ("q4_0",), "nbytes": 99, "mass_at_active": 1.0}
    good |= {"named_at_keep": 0.0, "bytes_per_token": 100.5}
    assert Trial.from_json(Trial(**good).to_json()) == Trial(**good)
    with pytest.raises(UserError, match="was tried"):
        Trial(**{**good, **wrong})
