import json
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from profiler.artifacts import UserError
from profiler.matrix import Matrix
from profiler.predictor import Predictor
from profiler.predictor_file import read_predictors, write_predictors
from profiler.predictor_header import read_outlines
from profiler.predictor_outline import PredictorQuality, Trial


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictors_come_back_as_they_were_written(tmp_path, dtype, make_predictor, make_set):
    path = tmp_path / "default.safetensors"
    predictors = make_set(make_predictor(dtype=dtype), make_predictor(dtype=dtype, threshold=float("-inf")))
    write_predictors(path, predictors)
    back = read_predictors(path)
    assert (back.source_digest, back.quality) == (predictors.source_digest, predictors.quality)
    for one, other in zip(back.layers, predictors.layers, strict=True):
        assert one.threshold == other.threshold
        assert one.fc1.data.dtype == dtype
        assert torch.equal(one.fc1.data, other.fc1.data)
        assert torch.equal(one.fc2.data, other.fc2.data)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_quantised_predictors_come_back_as_they_were_written(tmp_path, make_wide, make_set):
    path = tmp_path / "default.safetensors"
    predictors = make_set(make_wide(), make_wide(seed=1)).quantised()
    write_predictors(path, predictors)
    back = read_predictors(path)
    for one, other in zip(back.layers, predictors.layers, strict=True):
        assert (one.rank, one.hidden, one.neurons, one.weight_formats) == (32, 64, 50, ("q8_0", "q8_0"))
        assert torch.equal(one.fc1.data, other.fc1.data)
        assert torch.equal(one.fc2.data, other.fc2.data)


def test_every_family_comes_back_with_what_was_tried(tmp_path, make_wide, make_set):
    path, bias = tmp_path / "default.safetensors", torch.randn(50)
    layers = (
        make_wide().quantised(),
        Predictor.low_rank(make_wide().fc1, make_wide().fc2, 0.5, family="factors", bias=bias, reads="residual"),
        Predictor.gates(Matrix.quantised(torch.randn(50, 64), "q4_0"), -0.5),
        Predictor.none(64, 50),
        Predictor.low_rank(make_wide().fc1, make_wide().fc2, 0.5, reads="previous_ffn_input"),
    )
    trials = ((Trial("perceptron", 32, ("q8_0", "q8_0"), 3876, 0.99, 0.1, 5000.0, chosen=True),), (), (), (), ())
    write_predictors(path, make_set(*layers, trials=trials))
    back, outlines = read_predictors(path), read_outlines(path)
    assert back.trials == outlines.trials == trials
    for name in ("source_digest", "quality", "nbytes"):
        assert getattr(back, name) == getattr(outlines, name)
    x = torch.randn(9, 64)
    for one, other in zip(back.layers, layers, strict=True):
        assert (one.family, one.reads, one.threshold) == (other.family, other.reads, other.threshold)
        assert (one.nbytes, one.weight_formats) == (other.nbytes, other.weight_formats)
        assert torch.equal(one.named(x), other.named(x))
    for outline, other in zip(outlines.layers, layers, strict=True):
        for name in ("family", "reads", "hidden", "neurons", "threshold", "rank", "weight_formats", "nbytes"):
            assert getattr(outline, name) == getattr(other, name), name
        assert [(m.rows, m.columns) for m in outline.matrices] == [m.shape for m in other.matrices]
        assert (outline.bias is None) == (other.bias is None)


def test_files_of_version_1_are_read():
    path = Path(__file__).parents[1] / "artifacts/versions/predictors_1.safetensors"
    predictors = read_predictors(path)
    assert predictors.source_digest == "a" * 64
    assert [p.threshold for p in predictors.layers] == [0.25, float("inf")]
    assert predictors.quality == (PredictorQuality(100, 0.125, 0.25, 0.75, 0.5, 0.875),) * 2
    for seed, predictor in enumerate(predictors.layers):
        assert (predictor.family, predictor.reads) == ("perceptron", "ffn_input")
        assert predictor.weight_formats == ("f16", "f16")
        predictor.check_finite()
        assert torch.equal(predictor.fc1.widened(slice(None)), (torch.arange(8) - 3 + seed).view(2, 4) / 8)
        assert torch.equal(predictor.fc2.widened(slice(None)), (torch.arange(10) - 4 + seed).view(5, 2) / 4)
    outlines = read_outlines(path)
    assert [(p.family, p.rank, p.weight_formats, p.nbytes) for p in outlines.layers] == [
        (p.family, p.rank, p.weight_formats, p.nbytes) for p in predictors.layers
    ]


def test_opening_maps_the_file_and_reads_no_weights(tmp_path, make_set):
    path, fc2 = tmp_path / "default.safetensors", torch.ones(1 << 20, 16).half()
    predictor = Predictor.low_rank(Matrix.of(torch.ones(16, 8).half()), Matrix.of(fc2), 0.0)
    write_predictors(path, make_set(predictor))
    back = read_predictors(path)
    mapped = next(m for m in psutil.Process().memory_maps(grouped=False) if m.path == str(path))
    first, last = (int(end, 16) for end in mapped.addr.split("-"))
    assert mapped.rss <= fc2.nbytes // 4  # the kernel maps what is cached around a page that is read
    assert len(back.mappings()) == 2
    for matrix, (address, length, name) in zip((back.layers[0].fc1, back.layers[0].fc2), back.mappings(), strict=True):
        assert (address, length, name) == (matrix.data.data_ptr(), matrix.nbytes, str(path))
        assert first <= address and address + length <= last
    assert back.silenced().mappings() == back.mappings()
    assert make_set().mappings() == []
    assert torch.equal(back.layers[0].fc2.data, fc2)
    write_predictors(path, back)
    assert torch.equal(read_predictors(path).layers[0].fc2.data, back.layers[0].fc2.data)


@pytest.mark.parametrize("weight_format", ["f16", "bf16", "q8_0"])
def test_weights_that_are_not_finite_are_found_and_never_written(tmp_path, weight_format, make_set):
    values = torch.ones(32, 64)
    good = Matrix.quantised(values, weight_format)
    bad = Matrix.quantised(values, weight_format)
    bad.data[3, -2:] = torch.tensor([1, 0x7C], dtype=torch.uint8) if weight_format == "q8_0" else float("nan")
    fc2 = Matrix.quantised(torch.ones(10, 32), weight_format)
    Predictor.low_rank(good, fc2, 0.0).check_finite()
    predictor = Predictor.low_rank(bad, fc2, 0.0)
    with pytest.raises(UserError, match="not numbers"):
        predictor.check_finite()
    with pytest.raises(UserError, match="not numbers"):
        write_predictors(tmp_path / "x", make_set(predictor))
    assert not list(tmp_path.iterdir())


QUALITY = {"tokens": 100, "active": 0.1, "named": 0.12, "recall": 0.95, "precision": 0.8, "mass_recall": 0.99}
BODY = {
    "source_digest": "d",
    "reads": "ffn_input",
    "weight_format": "f16",
    "hidden": 6,
    "quality": [QUALITY],
}
GOOD = {"kind": "predictors", "format_version": "2", "predictors": json.dumps(BODY)}


def changed(**changes) -> dict[str, str]:
    return GOOD | {"predictors": json.dumps(BODY | changes)}


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (GOOD | {"format_version": "4"}, {}, "newer"),
        (GOOD | {"format_version": "0"}, {}, "no longer read"),
        (GOOD | {"format_version": "one"}, {}, "no format version"),
        (GOOD | {"kind": "profile"}, {}, "no predictors"),
        ({}, {}, "no predictors"),
        (GOOD | {"predictors": "{"}, {}, "damaged"),
        (GOOD | {"predictors": "[]"}, {}, "damaged"),
        (changed(reads="residual"), {}, "residual"),
        (changed(quality=[]), {}, "per layer"),
        (changed(quality=[{"tokens": 1}]), {}, "damaged"),
        (changed(quality=[QUALITY | {"recall": "all"}]), {}, "shares"),
        (GOOD, {"0.fc1": None}, "damaged"),
        (GOOD, {"thresholds": None}, "damaged"),
        (GOOD, {"thresholds": torch.zeros(100)}, "damaged"),
        (GOOD, {"thresholds": torch.zeros(())}, "damaged"),
        (GOOD, {"thresholds": torch.zeros(1, 1)}, "damaged"),
        (GOOD, {"thresholds": torch.zeros(1, dtype=torch.int64)}, "damaged"),
        (GOOD, {"0.fc1": torch.zeros(())}, "damaged"),
        (GOOD | {"predictors": "[" * 100_000}, {}, "damaged"),
        (GOOD, {"thresholds": torch.tensor([float("nan")])}, "not a number"),
        (GOOD, {"0.fc2": torch.zeros(10, 4).half()}, "3 columns"),
        (GOOD, {"0.fc2": torch.zeros(10, 3)}, "float16"),
        (GOOD, {"0.fc2": torch.zeros(10, 3).bfloat16()}, "float16"),
        (GOOD, {"0.fc2": torch.zeros(30).half()}, r"rows, 3\]"),
        (GOOD, {"0.fc2": torch.zeros(0, 3).half()}, "neither is empty"),
        (changed(hidden=7), {}, "7 columns"),
        (changed(hidden=1 << 70), {}, "damaged"),
        (changed(hidden="6"), {}, "'6' columns"),
        (changed(weight_format="q8_0"), {}, "blocks of 32"),
        (changed(weight_format="q8_0", hidden=64), {}, "uint8"),
        (changed(weight_format="f32"), {}, "'f32' is not known"),
        (changed(weight_format=["f16"]), {}, "is not known"),
        (GOOD | {"format_version": "1"}, {"0.fc2": torch.zeros(10, 4).half()}, "ranks 3 and 4"),
        (GOOD | {"format_version": "1"}, {"0.fc2": torch.zeros(10, 3)}, "float16"),
    ],
)
@pytest.mark.parametrize("read", [read_predictors, read_outlines])
def test_damaged_files_are_refused(tmp_path, metadata, tensors, message, read, make_predictor):
    path, predictor = tmp_path / "default.safetensors", make_predictor()
    good = {"0.fc1": predictor.fc1.data, "0.fc2": predictor.fc2.data, "thresholds": torch.tensor([0.25])}
    save_file({name: t for name, t in (good | tensors).items() if t is not None}, path, metadata)
    with pytest.raises(UserError, match=message):
        read(path)


LAYER = {"family": "perceptron", "reads": "ffn_input", "shape": [10, 6], "matrices": [["f16", 6], ["f16", 3]]}
BODY_3 = {"source_digest": "d", "quality": [QUALITY], "layers": [LAYER], "trials": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "damaged"),
        ({"layers": [{}]}, "damaged"),
        ({"layers": [LAYER | {"family": "oracle"}]}, "not known"),
        ({"layers": [LAYER | {"reads": "tea leaves"}]}, "not known"),
        ({"layers": [LAYER | {"shape": [10]}]}, "damaged"),
        ({"layers": [LAYER | {"shape": [11, 6]}]}, "11 neurons"),
        ({"layers": "ab"}, "damaged"),
        ({"layers": {"0": LAYER}}, "damaged"),
        ({"layers": [LAYER | {"matrices": [["f16", 3]]}]}, "other matrices"),
        ({"layers": [LAYER | {"matrices": [["f16", 6]] * 3}]}, "damaged"),
        ({"layers": [LAYER | {"matrices": [["f16", 6], ["bf16", 3]]}]}, "bfloat16"),
        ({"trials": [[{"rank": 3}]]}, "damaged"),
        ({"trials": [[], []]}, "every layer or for none"),
    ],
)
@pytest.mark.parametrize("read", [read_predictors, read_outlines])
def test_damaged_descriptions_are_refused(tmp_path, changes, message, read, make_predictor):
    path, predictor = tmp_path / "default.safetensors", make_predictor()
    tensors = {"0.fc1": predictor.fc1.data, "0.fc2": predictor.fc2.data, "thresholds": torch.tensor([0.25])}
    metadata = {"kind": "predictors", "format_version": "3"}
    save_file(tensors, path, metadata | {"predictors": json.dumps(BODY_3)})
    assert read(path).layers[0].rank == 3
    save_file(tensors, path, metadata | {"predictors": json.dumps(BODY_3 | changes)})
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
@pytest.mark.parametrize("read", [read_predictors, read_outlines])
def test_what_is_no_safetensors_file_is_refused_with_the_command(tmp_path, content, read):
    path = tmp_path / "default.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="make it anew with: mend it"):
        read(path, "mend it")


def test_missing_predictors_name_the_command(tmp_path):
    with pytest.raises(UserError, match="hybrid profile"):
        read_predictors(tmp_path / "none.safetensors")
