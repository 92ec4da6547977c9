"""The operators on the CPU: native for the few tokens of a decode step, the reference for the many of a prefill."""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Iterator

import torch

from hybrid.ops import reference
from hybrid.ops.bank import Counts, RowBank
from profiler.artifacts import UserError
from profiler.matrix import Matrix

try:
    from hybrid.ops import _native
except ImportError as error:
    if "HYBRID_ISA" in str(error):
        raise UserError(str(error)) from error
    raise UserError(
        f"the native operators cannot be loaded ({error}); build them with `pip install -e .` in the checkout, which "
        "needs a C++17 compiler, or install hybrid from a wheel"
    ) from error

HostFunction = _native.HostFunction
HostStep = _native.HostStep
Lane = _native.Lane
Pool = _native.Pool
Program = _native.Program
Signal = _native.Signal
guard_mapping = _native.guard_mapping
unguard_mapping = _native.unguard_mapping
isa = _native.isa

MAX_TOKENS = _native.MAX_TOKENS
MAX_SLOWDOWN = _native.MAX_SLOWDOWN
WEIGHT_FORMATS = {"bf16": _native.BF16, "f16": _native.F16, "q8_0": _native.Q8_0, "q4_0": _native.Q4_0}
MATRIX_FORMATS = {**WEIGHT_FORMATS, "b1": _native.B1}
PAGE_FORMATS = {torch.bfloat16: _native.BF16, torch.float16: _native.F16, torch.float32: _native.F32}
ACTIVATIONS = {
    "relu": _native.RELU,
    "relu2": _native.RELU2,
    "silu": _native.SILU,
    "gelu": _native.GELU,
    "gelu_tanh": _native.GELU_TANH,
    "drelu": _native.DRELU,
}


def sparse_ffn(
    pool: Pool,
    bank: RowBank,
    x: torch.Tensor,
    named: torch.Tensor | None = None,
    skip_inactive: bool = True,
    activations: torch.Tensor | None = None,
    gates: torch.Tensor | None = None,
    cutoff: float | None = None,
    fired: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Counts]:
    """What the bank's rows contribute; see `reference.sparse_ffn`.

    Args:
        pool: threads to compute on, for up to 16 tokens; torch has its own.
        bank: rows in host memory.
        x: fp32 `[tokens, hidden]`.
        named: bool `[tokens, len(bank)]`, perhaps a slice of the columns of a wider one; None names every row.
        skip_inactive: leave out pairs whose activation is exactly zero.
        activations: fp32 `[tokens, len(bank)]` to fill with what multiplies the down vectors, perhaps a slice of the
            columns of a wider one.
        gates: the same for what the activation function gives.
        cutoff: of activations, in the place of the bank's; the reference takes it.
        fired: int64 `[len(bank)]`, to which for each row the tokens are added that its down vector is added for.

    Raises:
        ValueError: shapes or dtypes do not fit the bank.
        RuntimeError: the bank is closed.
    """
    rows, bias = bank.memory  # held until the end, so that closing the bank meanwhile does no harm
    tokens = _tokens(x, bank.hidden)
    if named is not None:
        if named.shape != (tokens, len(bank)) or named.dtype != torch.bool or named.device != x.device:
            raise ValueError(f"named should be bool [{tokens}, {len(bank)}] in host memory")
        if named.stride(1) != 1 or named.stride(0) < len(bank):
            named = named.contiguous()
    if activations is not None and not (
        activations.shape == (tokens, len(bank))
        and activations.dtype == torch.float32
        and activations.device == x.device
        and activations.stride(1) == 1
    ):
        raise ValueError(f"activations should be float32 [{tokens}, {len(bank)}] in host memory, token after token")
    if fired is not None and not (
        fired.shape == (len(bank),)
        and fired.dtype == torch.int64
        and fired.device == x.device
        and fired.is_contiguous()
    ):
        raise ValueError(f"fired should be int64 [{len(bank)}] in host memory")
    if gates is not None or cutoff is not None or not 1 <= tokens <= MAX_TOKENS:
        cutoff = bank.cutoff if cutoff is None else cutoff
        _native.ask_for(
            bank.addresses[0], len(bank) * bank.stride_bytes
        )  # torch touches all rows, one page after the other
        shape = (bank.weight_format, bank.hidden, bank.gated, bank.activation, bias)
        with as_slow_as(pool):
            return reference.sparse_ffn(rows, *shape, x, named, skip_inactive, activations, cutoff, gates, fired)
    y = torch.empty_like(x)
    counts = array("q", (0, 0))
    _native.sparse_ffn(
        pool,
        *bank_arguments(bank),
        skip_inactive,
        bank.addresses[1],
        x.data_ptr(),
        tokens,
        0 if named is None else named.data_ptr(),
        0 if named is None else named.stride(0),
        y.data_ptr(),
        counts.buffer_info()[0],
        0 if activations is None else activations.data_ptr(),
        0 if activations is None else activations.stride(0),
        0 if fired is None else fired.data_ptr(),
    )
    return y, Counts(*counts)


def linear(pool: Pool, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` in fp32; see `reference.linear`.

    Args:
        pool: threads to compute on, for up to 16 tokens; torch has its own.
        x: fp32 `[tokens, in]`.
        weight: `[out, in]` in host memory.
        bias: fp32 `[out]` or None.

    Returns:
        fp32 `[tokens, out]`.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if weight.device.type != "cpu":
        raise ValueError(f"a weight is a matrix in host memory, not on {weight.device}")
    tokens = _tokens(x, weight.columns)
    check_bias(weight, bias)
    if not 1 <= tokens <= MAX_TOKENS:
        with as_slow_as(pool):
            return reference.linear(x, weight, bias)
    y = torch.empty(tokens, weight.rows)
    _native.linear(
        pool,
        weight.data.data_ptr(),
        weight.stride_bytes,
        MATRIX_FORMATS[weight.weight_format],
        weight.rows,
        weight.columns,
        0 if bias is None else bias.data_ptr(),
        x.data_ptr(),
        tokens,
        y.data_ptr(),
    )
    return y


@contextlib.contextmanager
def as_slow_as(pool: Pool | None) -> Iterator[None]:
    """What torch computes for a pool's unit takes as long as the pool's slowdown makes it take; None changes nothing.

    The native operators see to that themselves.
    """
    began = time.perf_counter()
    yield
    if pool is not None and pool.slowdown > 1:
        pool.linger(time.perf_counter() - began)


def greatest(row: torch.Tensor) -> int | None:
    """The place of the greatest of fp32 `[n]` in host memory, the first of equals; None where one is not finite."""
    assert row.ndim == 1 and row.dtype == torch.float32 and row.is_contiguous()
    place = _native.greatest(row.data_ptr(), len(row))
    return None if place < 0 else place


def bank_arguments(bank: RowBank) -> tuple[int, int, int, int, int, bool, int, float]:
    """A bank as the native module takes it: address, stride, rows, hidden, format, gated, activation, cutoff."""
    return (
        bank.addresses[0],
        bank.stride_bytes,
        len(bank),
        bank.hidden,
        WEIGHT_FORMATS[bank.weight_format],
        bank.gated,
        ACTIVATIONS[bank.activation],
        bank.cutoff,
    )


def matrix_arguments(
    weight: Matrix, bias: torch.Tensor | None = None, y: torch.Tensor | None = None
) -> tuple[int, int, int, int, int, int]:
    """A matrix as a program takes it: address, stride, format, outputs, bias, and the buffer of its outputs.

    Raises:
        ValueError: the bias does not fit.
    """
    check_bias(weight, bias)
    return (
        weight.data.data_ptr(),
        weight.stride_bytes,
        MATRIX_FORMATS[weight.weight_format],
        weight.rows,
        0 if bias is None else bias.data_ptr(),
        0 if y is None else y.data_ptr(),
    )


def check_bias(weight: Matrix, bias: torch.Tensor | None) -> None:
    """Refuse a bias that does not fit a matrix."""
    if bias is not None and (bias.shape != (weight.rows,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
        raise ValueError(f"a bias is contiguous float32 of shape [{weight.rows}]")


def _tokens(x: torch.Tensor, features: int) -> int:
    """Number of tokens of an input, which is checked."""
    if x.ndim != 2 or x.shape[1] != features or x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"x should be float32 [tokens, {features}] in host memory, not {x.dtype} {list(x.shape)}")
    if not x.is_contiguous():
        raise ValueError("x should be contiguous")
    return len(x)
