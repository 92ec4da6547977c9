"""Slowed pools: the same bits, and a wait of the right length after every piece of work, by count."""

import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from profiler.matrix import Matrix

RunProgram = Callable[..., float]
RATIO = 3.0
NANOSECOND = 1e-9
X = torch.randn(cpu.MAX_TOKENS, 64, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(100, dtype=torch.int32)


def bank() -> RowBank:
    return RowBank(torch.randn(100, 3 * 64).bfloat16(), "bf16", 64, True, "relu")


def check_waits(pool: cpu.Pool, times: int) -> None:
    """So many waits, each of them as long as it has to be."""
    assert pool.waits == times
    assert pool.worked_seconds > 0
    assert pool.waited_seconds >= (pool.slowdown - 1) * pool.worked_seconds - times * NANOSECOND


def test_single_operators_give_the_same_bits_and_wait_once_each() -> None:
    plain, slow, rows, weight = cpu.Pool(2), cpu.Pool(2, RATIO), bank(), Matrix.of(torch.randn(70, 64).half())
    assert torch.equal(cpu.linear(slow, X, weight), cpu.linear(plain, X, weight))
    (y, counts), (expected, expected_counts) = cpu.sparse_ffn(slow, rows, X), cpu.sparse_ffn(plain, rows, X)
    assert torch.equal(y, expected)
    assert counts == expected_counts
    check_waits(slow, 2)
    assert (plain.waits, plain.worked_seconds, plain.waited_seconds) == (0, 0.0, 0.0)


def test_what_torch_computes_in_the_pools_place_is_slowed_too() -> None:
    plain, slow, rows, weight = cpu.Pool(1), cpu.Pool(1, RATIO), bank(), Matrix.of(torch.randn(70, 64).half())
    many = torch.randn(cpu.MAX_TOKENS + 1, 64)
    assert torch.equal(cpu.linear(slow, many, weight), cpu.linear(plain, many, weight))
    check_waits(slow, 1)
    assert torch.equal(cpu.sparse_ffn(slow, rows, many)[0], cpu.sparse_ffn(plain, rows, many)[0])
    check_waits(slow, 2)
    with cpu.as_slow_as(slow):
        pass
    with cpu.as_slow_as(plain), cpu.as_slow_as(None):
        pass
    check_waits(slow, 3)
    assert plain.waits == 0


def every_operator(program: cpu.Program, pool: cpu.Pool, rows: RowBank, weight: Matrix) -> tuple[int, dict[str, Any]]:
    """Append one operator of every kind; how many there are, and the buffers, which outlive the program's runs."""
    sizes = {"x": 64, "y": 64, "z": 100, "sums": 64, "cosines": 8, "sines": 8, "mixed": 64}
    b = {name: torch.zeros(cpu.MAX_TOKENS, size) for name, size in sizes.items()}
    at = {name: buffer.data_ptr() for name, buffer in b.items()}
    ones, frequencies = torch.ones(64), 10000 ** (-torch.arange(8) / 8)
    named, counts = torch.zeros(cpu.MAX_TOKENS, 100, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    keys, values = torch.zeros(2, 1, 4, 16, 16)
    address, stride, number, *_ = cpu.matrix_arguments(weight)
    pages = (keys.data_ptr(), values.data_ptr(), cpu.PAGE_FORMATS[keys.dtype])
    program.embed(address, stride, number, 64, at["x"])
    program.add_positions(address, stride, number, 64, 0, at["x"])
    program.angles(frequencies.data_ptr(), 8, at["cosines"], at["sines"])
    program.norm(False, at["x"], ones.data_ptr(), 0, 64, 1, 1e-6, at["y"])
    program.linear(pool, at["y"], 64, [cpu.matrix_arguments(weight, None, b["z"])])
    program.rotate(at["y"], 4, 16, 16, at["cosines"], at["sines"])
    program.store(at["y"], at["x"], *pages, 4, 16)
    program.attention(pool, at["y"], *pages, 4, 4, 16, 0, at["mixed"])
    program.predict(pool, None, False, cpu.matrix_arguments(weight), 0.0, IDS.data_ptr(), at["x"], 64, named.data_ptr())
    skip, bias = True, rows.addresses[1]
    bank_of_rows = (*cpu.bank_arguments(rows), skip, bias, at["x"], named.data_ptr(), 100, False)
    program.sparse_ffn(pool, *bank_of_rows, at["sums"], counts.data_ptr())
    program.add(at["mixed"], at["sums"], 64, at["sums"])
    program.add_vector(ones.data_ptr(), 64, at["sums"])
    kept = {"named": named, "counts": counts, "pages": keys, "values": values, "ones": ones, "frequencies": frequencies}
    return 12, {**b, **kept}


@pytest.mark.parametrize("tokens", [1, 5])
def test_every_operator_of_a_program_is_slowed_once_and_gives_the_same_bits(
    run_program: RunProgram, tokens: int
) -> None:
    rows, weight, table = bank(), Matrix.of(torch.randn(100, 64).half()), array("q", [0])
    plain, slow, found = cpu.Pool(2), cpu.Pool(2, RATIO), []
    for pool in (plain, slow):
        program = cpu.Program()
        program.computed_by(pool)
        operators, buffers = every_operator(program, pool, rows, weight)
        step = {"ids": list(range(tokens)), "positions": list(range(tokens)), "tables": [table] * tokens}
        for _ in range(2):
            run_program(program, tokens, **step)
        found.append(buffers)
        seconds = sum(program.seconds.values())
        assert pool.waits == (2 * operators if pool is slow else 0)
    check_waits(slow, 2 * operators)
    assert seconds == pytest.approx(slow.worked_seconds + slow.waited_seconds)  # a program's figures hold the waits
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert found[0]["sums"][:tokens].abs().sum() > 0


def test_operators_that_belong_to_no_unit_are_not_slowed(run_program: RunProgram) -> None:
    slow, program, x = cpu.Pool(1, RATIO), cpu.Program(), torch.randn(cpu.MAX_TOKENS, 8)
    program.add(x.data_ptr(), x.data_ptr(), 8, x.data_ptr())
    program.computed_by(slow)
    program.add(x.data_ptr(), x.data_ptr(), 8, x.data_ptr())
    run_program(program, 3)
    check_waits(slow, 1)


def test_units_of_one_program_are_slowed_each_by_its_own_ratio(run_program: RunProgram) -> None:
    first, second, program, x = cpu.Pool(1, 2.0), cpu.Pool(1, 5.0), cpu.Program(), torch.randn(cpu.MAX_TOKENS, 8)
    for pool in (first, second, first):
        program.computed_by(pool)
        program.add(x.data_ptr(), x.data_ptr(), 8, x.data_ptr())
    run_program(program, 2)
    check_waits(first, 2)
    check_waits(second, 1)


@pytest.mark.parametrize("slowdown", [0.0, 0.99, -2.0, 100.1, math.inf, math.nan])
def test_ratios_that_make_no_sense(slowdown: float) -> None:
    with pytest.raises(ValueError, match="slowdown should be 1 to 100"):
        cpu.Pool(1, slowdown)


@pytest.mark.parametrize("seconds", [-1e-9, math.inf, math.nan])
def test_durations_that_make_no_sense(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds should be"):
        cpu.Pool(1, 2.0).linger(seconds)
