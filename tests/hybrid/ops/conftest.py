"""Fixtures of the operators' tests."""

from array import array
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from hybrid.ops import _native, cpu

RunProgram = Callable[..., float]


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


@pytest.fixture(scope="session")
def run_program() -> RunProgram:
    """`run_program(program, tokens, ids=..., positions=..., tables=...)`: a step; what is not given is zeros."""

    def run(
        program: cpu.Program,
        tokens: int,
        ids: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        tables: Sequence["array[int]"] | None = None,
    ) -> float:
        zeros = [0] * tokens
        addresses = [zeros] if tables is None else [[table.buffer_info()[0] for table in tables]]
        step = [array("q", numbers) for numbers in (ids or zeros, positions or zeros, *addresses)]
        return program.run(tokens, *(numbers.buffer_info()[0] for numbers in step))

    return run


DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "cpu"]


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where device operators are tested: a GPU, or without one the CPU under Triton's interpreter."""
    return torch.device(request.param)
