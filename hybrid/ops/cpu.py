"""The operators on the CPU: native for the few tokens of a decode step, the reference for the many of a prefill."""

from __future__ import annotations

from array import array

import torch

from hybrid.ops import reference
from hybrid.ops.bank import Counts, RowBank
from profiler.artifacts import UserError

try:
    from hybrid.ops import _native
except ImportError as error:
    if "HYBRID_ISA" in str(error):
        raise UserError(str(error)) from error
    raise UserError(
        f"the native operators cannot be loaded ({error}); build them with `pip install -e .` in the checkout, which "
        "needs a C++17 compiler, or install hybrid from a wheel"
    ) from error

Pool = _native.Pool
guard_mapping = _native.guard_mapping
unguard_mapping = _native.unguard_mapping
isa = _native.isa

WEIGHT_FORMATS = {torch.bfloat16: _native.BF16, torch.float16: _native.F16}
ACTIVATIONS = {"relu": _native.RELU, "silu": _native.SILU}


def sparse_ffn(
    pool: Pool,
    bank: RowBank,
    x: torch.Tensor,
    named: torch.Tensor | None = None,
    skip_inactive: bool = True,
    activations: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Counts]:
    """What the bank's rows contribute; see `reference.sparse_ffn`.

    Args:
        pool: threads to compute on, for up to 16 tokens; torch has its own.
        bank: rows in host memory.
        x: fp32 `[tokens, hidden]`.
        named: bool `[tokens, len(bank)]`, perhaps a slice of the columns of a wider one; None names every row.
        skip_inactive: leave out pairs whose activation is exactly zero.
        activations: fp32 `[tokens, len(bank)]` to fill with what multiplies the down vectors; the reference does that.

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
    if activations is not None or not 1 <= tokens <= _native.MAX_TOKENS:
        return reference.sparse_ffn(
            rows, bank.hidden, bank.gated, bank.activation, bias, x, named, skip_inactive, activations
        )
    rows_address, bias_address = bank.addresses
    y = torch.empty_like(x)
    counts = array("q", (0, 0))
    _native.sparse_ffn(
        pool,
        rows_address,
        bank.stride_bytes,
        len(bank),
        bank.hidden,
        WEIGHT_FORMATS[bank.dtype],
        bank.gated,
        ACTIVATIONS[bank.activation],
        skip_inactive,
        bias_address,
        x.data_ptr(),
        tokens,
        0 if named is None else named.data_ptr(),
        0 if named is None else named.stride(0),
        y.data_ptr(),
        counts.buffer_info()[0],
    )
    return y, Counts(*counts)


def linear(pool: Pool, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` in fp32.

    Args:
        pool: threads to compute on, for up to 16 tokens and 16-bit weights; torch has its own.
        x: fp32 `[tokens, in]`.
        weight: `[out, in]`, rows contiguous.
        bias: fp32 `[out]` or None.

    Returns:
        fp32 `[tokens, out]`.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if weight.ndim != 2 or weight.device.type != "cpu":
        raise ValueError(f"a weight is a matrix in host memory, not {list(weight.shape)} on {weight.device}")
    out_features, in_features = weight.shape
    tokens = _tokens(x, in_features)
    if bias is not None and (bias.shape != (out_features,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
        raise ValueError(f"a bias is contiguous float32 of shape [{out_features}]")
    weight_format = WEIGHT_FORMATS.get(weight.dtype)
    if weight_format is None or weight.stride(1) != 1 or not 1 <= tokens <= _native.MAX_TOKENS:
        return reference.linear(x, weight, bias)
    y = torch.empty(tokens, out_features)
    _native.linear(
        pool,
        weight.data_ptr(),
        2 * (weight.stride(0) if out_features > 1 else in_features),
        weight_format,
        out_features,
        in_features,
        0 if bias is None else bias.data_ptr(),
        x.data_ptr(),
        tokens,
        y.data_ptr(),
    )
    return y


def _tokens(x: torch.Tensor, features: int) -> int:
    """Number of tokens of an input, which is checked."""
    if x.ndim != 2 or x.shape[1] != features or x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"x should be float32 [tokens, {features}] in host memory, not {x.dtype} {list(x.shape)}")
    if not x.is_contiguous():
        raise ValueError("x should be contiguous")
    return len(x)
