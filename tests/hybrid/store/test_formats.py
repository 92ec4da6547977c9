"""Conversion to weight formats: exact where it can be, rounded to nearest, never silently infinite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.store.formats import FORMATS, choose_format, convert
from profiler.artifacts import UserError

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("matrices", "chosen"),
    [
        ([F16, F16], "f16"),
        ([BF16], "bf16"),
        ([F32], "bf16"),
        ([F64], "bf16"),
        ([F16, BF16], "bf16"),
        ([F16, F32], "bf16"),
    ],
)
def test_auto_keeps_a_16_bit_type(matrices, chosen):
    assert choose_format("auto", matrices) == chosen


def test_a_format_asked_for_is_taken_and_an_unknown_one_refused():
    assert choose_format("f16", [BF16]) == "f16"
    with pytest.raises(UserError, match="'q4_0' is not known; formats are auto, bf16, f16"):
        choose_format("q4_0", [BF16])


def test_values_of_the_same_type_are_not_copied():
    values = torch.randn(5).to(BF16)
    assert convert(values, BF16, "x") is values


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20), st.sampled_from(sorted(FORMATS)))
def test_conversion_rounds_to_nearest(numbers, name):
    values, dtype = torch.tensor(numbers, dtype=F32), FORMATS[name]
    found = convert(values, dtype, "x").double()
    step = torch.finfo(dtype).eps * values.double().abs().clamp(min=torch.finfo(dtype).tiny)
    assert bool(((found - values.double()).abs() <= step / 2).all())


@pytest.mark.parametrize("source", [BF16, F32, F64])
def test_f16_overflow_names_the_tensor_and_advises_bf16(source):
    with pytest.raises(
        UserError, match=r"layer\.7 has a value of [67]\.?\d*e\+04, too large for float16.*--format bf16"
    ):
        convert(torch.tensor([1.0, -70000.0], dtype=source), F16, "layer.7")


def test_beyond_bf16_is_damage():
    with pytest.raises(UserError, match="too large for bfloat16: the checkpoint is damaged"):
        convert(torch.tensor([3.4e38]), BF16, "x")
    with pytest.raises(UserError, match="too large for float32"):
        convert(torch.tensor([1e300], dtype=F64), F32, "x")
