"""Every operator in plain torch, on any device: the definition that the fast backends are tested against.

Weights of any format are widened exactly, everything is computed in fp32; what block formats are multiplied with is
rounded to 8 bits first (`rounded`), here as in every backend. `sparse_ffn` and `linear` widen a block of rows at a
time, so that their memory stays bounded: they also serve prefill.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hybrid.ops.bank import Counts
from hybrid.ops.limits import ROWS_AT_ONCE, SCORES_AT_ONCE
from hybrid.spec import Activation
from profiler.formats import BLOCK, is_quantised, vector_bytes
from profiler.matrix import Matrix

FEW = 0.75  # up to this share of rows that some token wants, picking them out costs less than computing the others


def activate(activation: Activation, values: torch.Tensor) -> torch.Tensor:
    """The activation of a feed-forward network, elementwise: what is applied to the gate, or without one to up.

    relu2 is the square of relu (Primer, So et al. 2021); gelu is x Φ(x), gelu_tanh its approximation by tanh (Hendrycks
    and Gimpel 2016); drelu applies relu here, and to the up projection too (TurboSparse, Song et al. 2024).
    """
    if activation == "silu":
        return functional.silu(values)
    if activation in ("gelu", "gelu_tanh"):
        return functional.gelu(values, approximate="tanh" if activation == "gelu_tanh" else "none")
    open_values = functional.relu(values)
    return open_values.square() if activation == "relu2" else open_values


def rounded(x: torch.Tensor, weight_format: str) -> torch.Tensor:
    """What a matrix of this format is multiplied with: fp32 `[tokens, n]` itself, or for block formats `x` in 8 bits.

    As ggml does, each block of 32 values is scaled so that its greatest magnitude becomes 127, and rounded to whole
    numbers (halves to even): products with blocks of weights are then sums of small whole numbers.
    """
    if not is_quantised(weight_format):
        return x
    blocks = x.view(len(x), x.shape[1] // BLOCK, BLOCK)
    greatest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(greatest, 127) / greatest  # one rounding; a number over a tensor is two
    inverse = inverse.masked_fill_(inverse.isinf(), 0)  # of zeros, and of what is too small to matter
    return ((blocks * inverse).round_() * (greatest / 127)).view_as(x)


def sparse_ffn(
    rows: torch.Tensor,
    weight_format: str,
    hidden: int,
    gated: bool,
    activation: Activation,
    bias: torch.Tensor | None,
    x: torch.Tensor,
    named: torch.Tensor | None,
    skip_inactive: bool,
    activations: torch.Tensor | None = None,
    cutoff: float = 0.0,
    gates: torch.Tensor | None = None,
    fired: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Counts]:
    """The part of a feed-forward network that a bank of rows contributes, each token over the rows named for it.

    `y[t] = sum over named r of act(gate_r . x_t) * (up_r . x_t) * down_r`, or without a gate
    `y[t] = sum over named r of act(up_r . x_t + bias_r) * down_r` (sparse computation by neurons: Deja Vu, PowerInfer).
    Under drelu `y[t] = sum over named r of relu(gate_r . x_t) * relu(up_r . x_t) * down_r`.

    Where many rows are named for no token they are not read, and where many are active for none only their first vector
    is: what is left out adds nothing to any token.

    Args:
        rows: `[n, stride]`, 16-bit floats or bytes; each row is the vectors [gate | up | down] or [up | down] of
            `hidden` weights, then padding.
        weight_format: of the vectors.
        hidden: weights of one vector.
        gated: whether rows have a gate.
        activation: see `activate`.
        bias: fp32 `[n]` or None.
        x: fp32 `[tokens, hidden]`.
        named: bool `[tokens, n]`; None names every row.
        skip_inactive: leave out pairs whose activation is exactly zero; they count as not finished. Under drelu also
            the down vectors of those whose up projection is not positive; they count as finished.
        activations: fp32 `[tokens, n]` to fill with what multiplies the down vectors, for whoever profiles; or None.
        cutoff: an activation `act(...)` of at most this magnitude counts as exactly zero, whether or not it is skipped
            (FATReLU's threshold, ProSparse, Song et al. 2024; CATS, Lee et al. 2024, eq. 4); NaN stays NaN.
        gates: fp32 `[tokens, n]` to fill with `act(...)` of what is named, as it is before the cutoff; or None.
        fired: int64 `[n]`, to which for each row the tokens are added that its down vector is added for; or None.

    Returns:
        y, fp32 `[tokens, hidden]`, and the counts of pairs.
    """
    width = vector_bytes(weight_format, hidden) // rows.element_size()
    places = [slice(i * width, (i + 1) * width) for i in range(3 if gated else 2)]
    parts = [Matrix(rows[:, place], weight_format, hidden) for place in places]
    y = torch.zeros_like(x)
    x = rounded(x, weight_format)
    gate_count = torch.zeros((), dtype=torch.int64, device=x.device)
    finish_count = torch.zeros_like(gate_count)
    if activations is not None:
        activations.zero_()
    if gates is not None:
        gates.zero_()
    every = torch.arange(len(rows), device=x.device)
    for block in torch.split(every if named is None else _wanted_rows(every, named), ROWS_AT_ONCE):
        scores = x @ _widened(parts[0], block).T  # [tokens, block]
        values = activate(activation, scores if bias is None else scores + bias[block])
        if gates is not None:
            gates[:, block] = values
        if cutoff > 0:
            values = values.masked_fill(values.abs() <= cutoff, 0)
        wanted = torch.ones_like(values, dtype=torch.bool) if named is None else named[:, block]
        gate_count += wanted.sum()
        if skip_inactive:
            wanted = wanted & (values != 0)
            block, values, wanted = _narrowed(block, values, wanted)
        finish_count += wanted.sum()
        if gated:
            values = values * (x @ _widened(parts[1], block).T)
        if activation == "drelu":
            values = functional.relu(values)
            if skip_inactive:
                block, values, wanted = _narrowed(block, values, wanted & (values != 0))
        values = torch.where(wanted, values, 0)
        if fired is not None:
            fired[block] += wanted.sum(0)
        if activations is not None:
            activations[:, block] = values
        y += values @ _widened(parts[-1], block)
    return y, Counts(int(gate_count), int(finish_count))


def _wanted_rows(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Those of `rows [n]` that some token wants, by bool `[tokens, n]`; all of them where picking would not pay."""
    found = rows[wanted.any(0)]
    return found if len(found) <= FEW * len(rows) else rows


def _narrowed(
    block: torch.Tensor, values: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows `[n]` with their values and wishes `[tokens, n]`, without those that no token wants, where that pays."""
    live = _wanted_rows(torch.arange(len(block), device=block.device), wanted)
    return (block, values, wanted) if len(live) == len(block) else (block[live], values[:, live], wanted[:, live])


def _widened(weight: Matrix, rows: torch.Tensor) -> torch.Tensor:
    """fp32 `[k, columns]` of rows in rising order; a run of them is read in place."""
    if not len(rows):
        return torch.zeros(0, weight.columns, device=weight.device)
    first, last = int(rows[0]), int(rows[-1])
    return weight.widened(slice(first, last + 1) if last - first + 1 == len(rows) else rows)


def linear(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias`, fp32 `[tokens, out]`: x is fp32 `[tokens, in]`, weight `[out, in]`, bias fp32 `[out]`."""
    y = torch.empty(len(x), weight.rows, dtype=torch.float32, device=x.device)
    x = rounded(x, weight.weight_format)
    for first in range(0, weight.rows, ROWS_AT_ONCE):
        block = slice(first, first + ROWS_AT_ONCE)
        y[:, block] = x @ weight.widened(block).T
    return y if bias is None else y.add_(bias)


def embed(weight: Matrix, ids: torch.Tensor) -> torch.Tensor:
    """fp32 `[tokens, columns]`: the rows of `weight` that `ids`, whole numbers `[tokens]` on its device, name."""
    return weight.widened(ids)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, in fp32 (Zhang and Sennrich 2019, eq. 4)."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension, in fp32 (Ba et al. 2016)."""
    return functional.layer_norm(x.float(), x.shape[-1:], weight.float(), None if bias is None else bias.float(), eps)


def rope(x: torch.Tensor, positions: torch.Tensor, inverse_frequencies: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021, eq. 34) of the first half of each head against its second half.

    That pairing, i with i + rotary / 2, is the one of the checkpoints of Hugging Face. Values of a head past the first
    `rotary`, which are two for each frequency, stay as they are.

    Args:
        x: fp32 `[tokens, heads, head_dim]`.
        positions: whole numbers `[tokens]`.
        inverse_frequencies: fp32 `[rotary / 2]`, radians per position.
    """
    angles = positions.to(torch.float32)[:, None, None] * inverse_frequencies  # [tokens, 1, rotary / 2]
    cos, sin = angles.cos(), angles.sin()
    half = len(inverse_frequencies)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first_position: int, window: int | None = None
) -> torch.Tensor:
    """Causal attention with grouped heads (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023), softmax in fp32.

    Key j stands at position j, query i at `first_position + i`. It sees keys at or before its own position, with a
    window only the last `window` of them, itself included. Query head h reads key-value head `h // (heads / kv_heads)`.

    Args:
        q: `[tokens, heads, head_dim]`.
        k: `[keys, kv_heads, head_dim]`, as v.
        v: the values.
        first_position: of the first query; at least 0, so that every query sees a key.
        window: keys that a query sees at most, or None.

    Returns:
        fp32 `[tokens, heads, head_dim]`.
    """
    tokens, heads, head_dim = q.shape
    keys, kv_heads, _ = k.shape
    shared = heads // kv_heads
    grouped = q.float().view(tokens, kv_heads, shared, head_dim).permute(1, 2, 0, 3)  # [kv_heads, shared, tokens, dim]
    keys_t = k.float().permute(1, 2, 0)[:, None] * head_dim**-0.5  # [kv_heads, 1, dim, keys]
    values = v.float().permute(1, 0, 2)[:, None]  # [kv_heads, 1, keys, dim]
    key_positions = torch.arange(keys, device=q.device)
    out = torch.empty(tokens, kv_heads, shared, head_dim, device=q.device)
    step = max(1, SCORES_AT_ONCE // (heads * keys))
    for first in range(0, tokens, step):
        block = slice(first, min(first + step, tokens))
        positions = first_position + torch.arange(block.start, block.stop, device=q.device)[:, None]
        visible = key_positions <= positions
        if window is not None:
            visible &= key_positions > positions - window
        scores = (grouped[:, :, block] @ keys_t).masked_fill(~visible, float("-inf"))
        out[block] = (scores.softmax(-1) @ values).permute(2, 0, 1, 3)
    return out.view(tokens, heads, head_dim)


def predict(
    x: torch.Tensor,
    fc1: Matrix | None,
    rectified: bool,
    fc2: Matrix,
    bias: torch.Tensor | None,
    threshold: float,
) -> torch.Tensor:
    """The rows that a predictor names: `fc2 @ relu(fc1 @ x) + bias > threshold` (Deja Vu, PowerInfer).

    Args:
        x: fp32 `[tokens, d]`.
        fc1: `[rank, d]`, or None where fc2 reads x itself.
        rectified: whether negative numbers between the two become zero.
        fc2: `[n, rank]`, or `[n, d]`.
        bias: fp32 `[n]` or None.
        threshold: on the logits.

    Returns:
        bool `[tokens, n]`.
    """
    if fc1 is not None:
        x = linear(x, fc1)
        x = functional.relu(x) if rectified else x
    return linear(x, fc2, bias) > threshold
