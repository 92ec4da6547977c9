"""Fixtures of the operators' tests."""

from collections.abc import Iterator

import pytest
import torch

from hybrid.ops import _native


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=_native.supported_isas(), scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn; the chosen one returns afterwards."""
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)
