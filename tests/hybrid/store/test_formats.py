"""Conversion to weight formats: exact where it can be, rounded to nearest, never silently infinite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.store.formats import choose_format, convert
from profiler.artifacts import UserError
from profiler.blocks import encode
from profiler.matrix import SIXTEEN_BIT

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("stored", "chosen"),
    [
        ({"F16": 9}, "f16"),
        ({"BF16": 9}, "bf16"),
        ({"F32": 9}, "bf16"),
        ({"F64": 9}, "bf16"),
        ({"F16": 5, "BF16": 1}, "bf16"),
        ({"F16": 5, "F32": 1}, "bf16"),
        ({"Q8_0": 9}, "q8_0"),
        ({"Q4_0": 8, "Q6_K": 1}, "q4_0"),
        ({"Q4_K": 5, "Q6_K": 4}, "q8_0"),
        ({"Q4_0": 4, "Q6_K": 5}, "q8_0"),
        ({"F16": 5, "Q8_0": 4}, "bf16"),
        ({"F16": 1, "Q8_0": 4}, "q8_0"),
    ],
)
def test_auto_keeps_the_type_of_most_weights_where_it_can(stored, chosen):
    assert choose_format("auto", stored) == chosen


def test_a_format_asked_for_is_taken_and_an_unknown_one_refused():
    assert choose_format("f16", {"BF16": 1}) == "f16"
    assert choose_format("q4_0", {"F32": 1}) == "q4_0"
    with pytest.raises(UserError, match="'q5_1' is not known; formats are auto, bf16, f16, q8_0, q4_0"):
        choose_format("q5_1", {"BF16": 1})


def test_values_of_the_same_type_are_not_copied():
    values = torch.randn(5).to(BF16)
    assert convert(values, "bf16", "x") is values


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20), st.sampled_from(sorted(SIXTEEN_BIT)))
def test_conversion_rounds_to_nearest(numbers, name):
    values, dtype = torch.tensor(numbers, dtype=F32), SIXTEEN_BIT[name]
    found = convert(values, name, "x").double()
    step = torch.finfo(dtype).eps * values.double().abs().clamp(min=torch.finfo(dtype).tiny)
    assert bool(((found - values.double()).abs() <= step / 2).all())


@pytest.mark.parametrize("source", [BF16, F32, F64])
def test_f16_overflow_names_the_tensor_and_advises_bf16(source):
    with pytest.raises(
        UserError, match=r"layer\.7 has a value of [67]\.?\d*e\+04, too large for float16.*--format bf16"
    ):
        convert(torch.tensor([1.0, -70000.0], dtype=source), "f16", "layer.7")


def test_beyond_bf16_is_damage():
    with pytest.raises(UserError, match="too large for bfloat16: the checkpoint is damaged"):
        convert(torch.tensor([3.4e38]), "bf16", "x")
    with pytest.raises(UserError, match="too large for float32"):
        convert(torch.tensor([1e300], dtype=F64), "f32", "x")


@pytest.mark.parametrize("source", [BF16, F16, F32, F64])
@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
def test_quantised_values_are_the_encoded_ones(weight_format, source):
    values = torch.randn(3, 96).to(source)
    assert torch.equal(convert(values, weight_format, "x"), encode(values, weight_format))


@pytest.mark.parametrize(("weight_format", "value"), [("q8_0", 9e6), ("q4_0", -6e5), ("q4_0", 1e300)])
def test_a_scale_beyond_half_names_the_tensor_and_advises_bf16(weight_format, value):
    values = torch.zeros(2, 64, dtype=F64)
    values[1, 33] = value
    with pytest.raises(
        UserError, match=f"layer.7: a weight of .* scale beyond float16 in {weight_format}.*format bf16"
    ):
        convert(values, weight_format, "layer.7")
