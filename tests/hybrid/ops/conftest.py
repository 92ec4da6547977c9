"""Fixtures of the operators' tests."""

import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hybrid.ops import _native, cpu

RunProgram = Callable[..., float]
CompileCalls = Callable[..., "list[Compiled]"]


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


@dataclass(frozen=True)
class Compiled:
    """A kernel for one kind of arguments. registers: of a thread; spilled: bytes that did not fit them; shared: bytes
    of shared memory; widest_load: bytes that a thread reads at once, at most."""

    name: str
    registers: int
    spilled: int
    shared: int
    widest_load: int


@pytest.fixture(scope="session")
def compile_calls() -> CompileCalls:
    """`compile_calls(source, capability=80)`: what calls of device operators in `source` launch on such a GPU.

    They are compiled, in a process of their own, and not launched; tensors of `source` are on the CPU.
    """

    def run(source: str, capability: int = 80) -> list[Compiled]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, Path(__file__).with_name("compiling.py"), str(capability)]
        done = subprocess.run(command, input=source, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [Compiled(**kernel) for kernel in json.loads(done.stdout)]

    return run
