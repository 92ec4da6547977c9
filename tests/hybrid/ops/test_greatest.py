"""The place of the greatest value, and that nothing which is not finite passes for one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import _native, cpu

pytestmark = pytest.mark.usefixtures("isa")
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("n", range(1, 101))
def test_every_place_of_every_length(n: int) -> None:
    values = torch.randn(n) - 10
    for place in range(n):
        row = values.clone()
        row[place] = 3.0
        assert cpu.greatest(row) == place
        for bad in NOT_FINITE:
            row[place] = bad
            assert cpu.greatest(row) is None


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3e38, -3e38]), min_size=1, max_size=100))
def test_of_equals_the_first(values: list[float]) -> None:
    assert cpu.greatest(torch.tensor(values)) == values.index(max(values))


def test_several_that_are_not_finite() -> None:
    for length in (1, 2, 16, 37):
        for bad in NOT_FINITE:
            assert cpu.greatest(torch.full((length,), bad)) is None
    assert cpu.greatest(torch.tensor([float("inf"), -float("inf")] * 20)) is None


def test_no_values_have_no_greatest() -> None:
    with pytest.raises(ValueError, match="n is out of range"):
        _native.greatest(torch.zeros(4).data_ptr(), 0)
    with pytest.raises(ValueError, match="x should be"):
        _native.greatest(0, 4)
