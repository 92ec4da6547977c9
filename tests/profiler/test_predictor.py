import json

import pytest
import torch
from safetensors.torch import save_file

from profiler.artifacts import UserError
from profiler.predictor import (
    LowRankPredictor,
    PredictorQuality,
    PredictorSet,
    read_predictors,
    write_predictors,
)

QUALITY = PredictorQuality(tokens=100, active=0.1, named=0.12, recall=0.95, precision=0.8, mass_recall=0.99)


def make(hidden=6, neurons=10, rank=3, threshold=0.25, seed=0, dtype=torch.float16) -> LowRankPredictor:
    generator = torch.Generator().manual_seed(seed)
    fc1 = torch.randn(rank, hidden, generator=generator).to(dtype)
    return LowRankPredictor(fc1, torch.randn(neurons, rank, generator=generator).to(dtype), threshold)


def make_set(**changes) -> PredictorSet:
    layers = (make(seed=1), make(seed=2, rank=5, threshold=-1.5), make(seed=3, threshold=float("inf")))
    return PredictorSet("digest", layers, (QUALITY,) * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_those_of_the_formula(dtype):
    predictor, x = make(dtype=dtype), torch.randn(4, 6)
    fc1, fc2 = predictor.fc1.double(), predictor.fc2.double()
    for token in range(4):
        bottleneck = [max(0.0, float(fc1[r] @ x[token].double())) for r in range(3)]
        for neuron in range(10):
            logit = sum(b * float(fc2[neuron, r]) for r, b in enumerate(bottleneck))
            assert float(predictor.logits(x)[token, neuron]) == pytest.approx(logit, abs=1e-5)
            if abs(logit - 0.25) > 1e-4:
                assert bool(predictor.named(x)[token, neuron]) == (logit > 0.25)


def test_what_a_token_names_does_not_depend_on_its_neighbours():
    predictor, x = make(), torch.randn(16, 6)
    alone = torch.cat([predictor.named(x[i : i + 1]) for i in range(16)])
    assert torch.equal(predictor.named(x), alone)


def test_infinite_thresholds_name_nothing_or_everything():
    x = torch.randn(3, 6)
    assert not make(threshold=float("inf")).named(x).any()
    assert make(threshold=float("-inf")).named(x).all()


def test_sizes_are_counted():
    assert make().parameters == 3 * 6 + 10 * 3
    assert make().nbytes == 2 * make().parameters
    predictors = make_set()
    assert predictors.parameters == 48 + (5 * 6 + 10 * 5) + 48
    assert predictors.nbytes == 2 * predictors.parameters
    assert (make().rank, make().hidden, make().neurons) == (3, 6, 10)


def test_silenced_predictors_name_nothing_and_leave_the_others_alone():
    predictors, x = make_set(), torch.randn(8, 6)
    silent = predictors.silenced()
    assert not any(p.named(x).any() for p in silent.layers)
    assert predictors.layers[0].named(x).any()
    assert silent.source_digest == predictors.source_digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictors_come_back_as_they_were_written(tmp_path, dtype):
    path = tmp_path / "default.safetensors"
    predictors = PredictorSet("digest", (make(dtype=dtype), make(dtype=dtype, threshold=float("-inf"))), (QUALITY,) * 2)
    write_predictors(path, predictors)
    back = read_predictors(path)
    assert (back.source_digest, back.quality) == (predictors.source_digest, predictors.quality)
    for one, other in zip(back.layers, predictors.layers, strict=True):
        assert one.threshold == other.threshold
        assert one.fc1.dtype == dtype
        assert torch.equal(one.fc1, other.fc1)
        assert torch.equal(one.fc2, other.fc2)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("fc1", "fc2", "threshold"),
    [
        (torch.zeros(3, 6), torch.zeros(10, 3), 0.0),
        (torch.zeros(3, 6).half(), torch.zeros(10, 4).half(), 0.0),
        (torch.zeros(3, 6).half(), torch.zeros(10, 3).bfloat16(), 0.0),
        (torch.zeros(3).half(), torch.zeros(10, 3).half(), 0.0),
        (torch.zeros(0, 6).half(), torch.zeros(10, 0).half(), 0.0),
        (torch.full((3, 6), float("nan")).half(), torch.zeros(10, 3).half(), 0.0),
        (torch.zeros(3, 6).half(), torch.full((10, 3), float("inf")).half(), 0.0),
        (torch.zeros(3, 6).half(), torch.zeros(10, 3).half(), float("nan")),
    ],
)
def test_impossible_predictors_are_refused(fc1, fc2, threshold):
    with pytest.raises(UserError, match="predictor"):
        LowRankPredictor(fc1, fc2, threshold)


def test_a_set_has_layers_of_one_size_each_with_its_quality():
    with pytest.raises(UserError, match="one size"):
        PredictorSet("d", (make(), make(neurons=11)), (QUALITY,) * 2)
    for layers, count in (((make(),), 2), ((), 0)):
        with pytest.raises(UserError, match="per layer"):
            PredictorSet("d", layers, (QUALITY,) * count)
    with pytest.raises(UserError, match="shares"):
        PredictorQuality(100, 0.1, 0.1, 1.5, 0.5, 0.5)


BODY = {"source_digest": "d", "reads": "ffn_input", "quality": [dict(vars(QUALITY))]}
GOOD = {"kind": "predictors", "format_version": "1", "predictors": json.dumps(BODY)}


def changed(**changes) -> dict[str, str]:
    return GOOD | {"predictors": json.dumps(BODY | changes)}


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (GOOD | {"format_version": "2"}, {}, "newer"),
        (GOOD | {"format_version": "one"}, {}, "no format version"),
        (GOOD | {"kind": "profile"}, {}, "no predictors"),
        ({}, {}, "no predictors"),
        (GOOD | {"predictors": "{"}, {}, "damaged"),
        (GOOD | {"predictors": "[]"}, {}, "damaged"),
        (changed(reads="residual"), {}, "residual"),
        (changed(quality=[]), {}, "per layer"),
        (changed(quality=[{"tokens": 1}]), {}, "damaged"),
        (changed(quality=[dict(vars(QUALITY)) | {"recall": "all"}]), {}, "shares"),
        (GOOD, {"0.fc1": None}, "damaged"),
        (GOOD, {"thresholds": None}, "damaged"),
        (GOOD, {"thresholds": torch.zeros(100)}, "damaged"),
        (GOOD, {"thresholds": torch.tensor([float("nan")])}, "not numbers"),
        (GOOD, {"0.fc2": torch.zeros(10, 4).half()}, "ranks 3 and 4"),
        (GOOD, {"0.fc2": torch.full((10, 3), float("nan")).half()}, "not numbers"),
        (GOOD, {"0.fc2": torch.zeros(10, 3)}, "float16"),
    ],
)
def test_damaged_files_are_refused(tmp_path, metadata, tensors, message):
    path = tmp_path / "default.safetensors"
    good = {"0.fc1": make().fc1, "0.fc2": make().fc2, "thresholds": torch.tensor([0.25])}
    save_file({name: t for name, t in (good | tensors).items() if t is not None}, path, metadata)
    with pytest.raises(UserError, match=message):
        read_predictors(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused_with_the_command(tmp_path, content):
    path = tmp_path / "default.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="make it anew with: mend it"):
        read_predictors(path, "mend it")


def test_missing_predictors_name_the_command(tmp_path):
    with pytest.raises(UserError, match="hybrid profile"):
        read_predictors(tmp_path / "none.safetensors")
