"""What does not grow with weights: starting an operator. And the link between memories."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import torch

from hybrid.ops import cpu
from hybrid.runtime.unit import Unit
from hybrid.stages.hardware_weights import complete, few_rows
from profiler.matrix import Matrix
from profiler.timing import Call, Case, intercept, time_cases

IN_A_ROW = 32  # operators of a program whose starts are timed
LEAST_ROWS = 4  # that one thread takes of an operator
LINK_BYTES = 64 << 20
ROUNDS = 5


@dataclass(frozen=True)
class Link:
    """Bytes per second from the host's memory to the other unit's, and back."""

    there: float
    back: float
    spread: float


def measure_link(other: Unit, least: int, seconds: float) -> Link:
    """Time copies of at least `least` bytes between the host's memory, pinned for a GPU, and another unit's."""
    size = max(LINK_BYTES, least)
    on_gpu = other.device.type == "cuda"
    host = torch.ones(size, dtype=torch.uint8, pin_memory=on_gpu)  # zeros that nobody wrote take no memory
    far = torch.ones(size, dtype=torch.uint8, device=other.device)

    def copy(to: torch.Tensor, source: torch.Tensor) -> Call:
        def call() -> None:
            to.copy_(source, non_blocking=on_gpu)
            complete(other)

        return call

    timings = time_cases({"there": Case(copy(far, host)), "back": Case(copy(host, far))}, seconds / 2, ROUNDS)
    there, back = timings["there"], timings["back"]
    return Link(size / there.seconds, size / back.seconds, max(there.spread, back.spread))


def measure_overhead(unit: Unit, threads: int, hidden: int, seconds: float) -> float:
    """Seconds that an operator costs whatever its size: the mean of a projection's and a sparse FFN's.

    Each is what is left at no weights of times at sizes of one, two and four times the least that all threads share;
    many run one after the other, as in a step: in a recorded program in host memory, queued on a GPU.
    """
    found: list[float] = []
    for prepare in (_projections, _feed_forwards):
        sizes = [max(1, threads) * LEAST_ROWS * times for times in (1, 2, 4)]
        cases = {size: Case(prepare(unit, hidden, size)) for size in sizes}
        timings = time_cases(cases, seconds / 2 / len(cases), ROUNDS)
        found.append(intercept([float(size) for size in sizes], [timings[size].seconds / IN_A_ROW for size in sizes]))
    return sum(found) / len(found)


def _projections(unit: Unit, hidden: int, rows: int) -> Call:
    weight = unit.place_matrix(Matrix.of(torch.ones(rows, hidden, dtype=torch.float16)), "overhead")
    x = torch.ones(cpu.MAX_TOKENS, hidden, device=unit.device)
    if unit.pool is None:
        return _queued(unit, lambda: unit.linear(x[:1], weight, None))
    y = torch.zeros(cpu.MAX_TOKENS, rows)
    program = cpu.Program()
    for _ in range(IN_A_ROW):
        program.linear(unit.pool, x.data_ptr(), hidden, [cpu.matrix_arguments(weight, None, y)])
    return _program(program, weight, x, y)


def _feed_forwards(unit: Unit, hidden: int, rows: int) -> Call:
    bank = few_rows(unit, hidden, rows)
    x = torch.ones(cpu.MAX_TOKENS, hidden, device=unit.device)
    named = torch.ones(cpu.MAX_TOKENS, len(bank), dtype=torch.bool, device=unit.device)
    if unit.pool is None:
        return _queued(unit, lambda: unit.sparse_ffn(bank, x[:1], named[:1], True))
    y, counts = torch.zeros(cpu.MAX_TOKENS, hidden), array("q", (0, 0))
    program = cpu.Program()
    for _ in range(IN_A_ROW):
        inputs = (True, 0, x.data_ptr(), named.data_ptr(), len(bank), False, y.data_ptr(), counts.buffer_info()[0])
        program.sparse_ffn(unit.pool, *cpu.bank_arguments(bank), *inputs)
    return _program(program, bank, x, named, y, counts)


def _queued(unit: Unit, operator: Call) -> Call:
    def call() -> None:
        for _ in range(IN_A_ROW):
            operator()
        complete(unit)

    return call


def _program(program: cpu.Program, *kept: object) -> Call:
    """Runs a program; kept: what it holds by address."""
    unused = array("q", (0,))

    def call() -> object:
        return kept and program.run(1, *[unused.buffer_info()[0]] * 3)

    return call
