"""What a step does to states on a GPU, in Triton: norms, rotary positions, pages of keys and values, attention.

As every device operator: outputs and scratch are given, nothing is allocated and nothing waits, so that a call can be
part of a CUDA graph. Lengths are read on the device. The number of tokens is `len(x)`; activations are fp32. A token's
bits are the same in every run, alone and among others. Under TRITON_INTERPRET=1 tensors are on the CPU.
"""

from __future__ import annotations

from typing import Protocol

import torch
import triton

from hybrid.ops.kernels.attention import attend_kernel, join_kernel, store_kernel
from hybrid.ops.kernels.states import norm_kernel, rotate_kernel
from hybrid.ops.limits import ATTENTION_HEADS, NATIVE_TOKENS, SPLIT_KEYS, attention_splits
from hybrid.ops.scratch import Scratch

PAGE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TILE = 8192  # products of a query's and keys' values that a program holds at once
LONGEST = 1 << 30  # a window that leaves nothing out


class Pages(Protocol):
    """Keys and values `[block, kv_head, PAGE, head_dim]`, as `hybrid.model.kv_cache.LayerPages`."""

    keys: torch.Tensor
    values: torch.Tensor


def norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, centred: bool, eps: float, y: torch.Tensor
) -> None:
    """Each vector of `x` normalised into y, which may be x; see `reference.rms_norm` and, `centred`, `layer_norm`.

    x and y: fp32 `[tokens, vectors, width]`, the values of a vector one after the other. weight, bias: fp32 `[width]`.
    """
    tokens, vectors, width = x.shape
    _check_states(x, y)
    for vector in (weight,) if bias is None else (weight, bias):
        if vector.shape != (width,) or vector.dtype != torch.float32 or not vector.is_contiguous():
            raise ValueError(f"a norm of {width} values takes float32 [{width}], not {_described(vector)}")
    room = triton.next_power_of_2(width)
    norm_kernel[(tokens * vectors,)](
        x, weight, weight if bias is None else bias, y, vectors, width, *x.stride()[:2], *y.stride()[:2], eps,
        CENTRED=centred, BIASED=bias is not None, WIDTH=room, num_warps=min(max(room // 512, 1), 16),
    )  # fmt: skip


def angles(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> None:
    """The step's rotary angles, which `rotate` takes in every layer, as `reference.rope` computes them.

    positions: int64 `[tokens]`; inverse_frequencies: fp32 `[half]`; cosines, sines: fp32 `[tokens, half]`. By torch,
    whose functions are exact for angles of any size, where Triton's are the processor's approximations.
    """
    torch.mul(positions[:, None], inverse_frequencies, out=cosines)
    torch.sin(cosines, out=sines)
    torch.cos(cosines, out=cosines)


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> None:
    """Turn the first `2 * half` values of each head by its token's `angles`, in place; see `reference.rope`.

    x: fp32 `[tokens, heads, head_dim]`; cosines, sines: fp32 `[tokens, half]`.
    """
    tokens, heads, head_dim = x.shape
    half = cosines.shape[-1]
    _check_states(x)
    if any(a.shape != (tokens, half) or a.dtype != torch.float32 or not a.is_contiguous() for a in (cosines, sines)):
        raise ValueError(f"angles are float32 [{tokens}, half], not {_described(cosines)} and {_described(sines)}")
    if 2 * half > head_dim:
        raise ValueError(f"{half} angles turn {2 * half} values, and heads have {head_dim}")
    room = triton.next_power_of_2(half)
    together = min(triton.next_power_of_2(heads), max(512 // room, 1))
    rotate_kernel[(tokens, triton.cdiv(heads, together))](
        x, cosines, sines, heads, *x.stride()[:2], HEADS=together, HALF=half, WIDTH=room
    )


def store(k: torch.Tensor, v: torch.Tensor, pages: Pages, positions: torch.Tensor, tables: torch.Tensor) -> None:
    """Keys and values of the step's tokens into their pages, rounded to the pages' type.

    k, v: fp32 `[tokens, kv_heads, head_dim]`; positions: int64 `[tokens]`; tables: int32 `[tokens, pages]`, the blocks
    of each token's text.
    """
    tokens, kv_heads, head_dim = k.shape
    _check_states(k, v)
    page = _check_pages(pages, kv_heads, head_dim, positions, tables, tokens)
    store_kernel[(tokens, kv_heads)](
        k, v, pages.keys, pages.values, positions, tables, tables.stride(0), *k.stride()[:2], *v.stride()[:2],
        KV_HEADS=kv_heads, HEAD_DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim), PAGE=page, num_warps=1,
    )  # fmt: skip


def attend(
    q: torch.Tensor,
    pages: Pages,
    positions: torch.Tensor,
    tables: torch.Tensor,
    window: int | None,
    y: torch.Tensor,
    scratch: Scratch,
    context: int,
) -> None:
    """Attention of each token over its text up to itself, which is stored already; see `reference.attention`.

    q, y: fp32 `[tokens, heads, head_dim]`; positions and tables as for `store`. window: keys that a token sees at most,
    itself included, or None. context: tokens of the longest text there can be, which decides how texts are cut.
    """
    tokens, heads, head_dim = q.shape
    kv_heads = pages.keys.shape[1]
    _check_states(q, y)
    page = _check_pages(pages, kv_heads, head_dim, positions, tables, tokens)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not share {kv_heads} key-value heads evenly")
    shared, width = heads // kv_heads, triton.next_power_of_2(head_dim)
    splits = attention_splits(heads, kv_heads, context if window is None else min(context, window + page))
    together = min(triton.next_power_of_2(shared), ATTENTION_HEADS)
    sums = scratch.get("attention sums", (NATIVE_TOKENS, heads, splits, head_dim), torch.float32)
    weights = scratch.get("attention weights", (NATIVE_TOKENS, heads, splits, 2), torch.float32)
    together_keys = min(max(TILE // (together * width), page), SPLIT_KEYS)
    cut = {
        "HEAD_DIM": head_dim, "WIDTH": width, "PAGE": page, "WINDOW": window or LONGEST, "SPLITS": splits,
        "KEYS": together_keys,
    }  # fmt: skip
    attend_kernel[(tokens, kv_heads * triton.cdiv(shared, together), splits)](
        q, pages.keys, pages.values, positions, tables, tables.stride(0), *q.stride()[:2], head_dim**-0.5,
        sums, weights, KV_HEADS=kv_heads, SHARED=shared, HEADS=together, **cut,
        num_warps=4 if together * width * together_keys <= TILE else 8,
    )  # fmt: skip
    join_kernel[(tokens, heads)](
        sums, weights, positions, y, *y.stride()[:2], HEADS=heads, ROOM=triton.next_power_of_2(splits), **cut
    )


def add(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """`y = a + b`, of equal shape; y may be one of them."""
    torch.add(a, b, out=y)


def _check_states(*states: torch.Tensor) -> None:
    shape = states[0].shape
    for x in states:
        if x.shape != shape or x.dtype != torch.float32 or x.stride(2) != 1:
            raise ValueError(f"states are float32 {list(shape)} with values side by side, not {_described(x)}")
    if not 1 <= shape[0] <= NATIVE_TOKENS:
        raise ValueError(f"a step has 1 to {NATIVE_TOKENS} tokens, not {shape[0]}")


def _check_pages(
    pages: Pages, kv_heads: int, head_dim: int, positions: torch.Tensor, tables: torch.Tensor, tokens: int
) -> int:
    """Tokens of a page."""
    keys, values = pages.keys, pages.values
    if keys.shape != values.shape or keys.shape[1] != kv_heads or keys.shape[3] != head_dim:
        raise ValueError(f"pages of {kv_heads} heads of {head_dim} do not have {_described(keys)}")
    if (
        keys.dtype not in PAGE_DTYPES
        or values.dtype != keys.dtype
        or not (keys.is_contiguous() and values.is_contiguous())
    ):
        raise ValueError(f"pages are contiguous, of 16 or 32 bit, not {_described(keys)} and {_described(values)}")
    if positions.shape != (tokens,) or positions.dtype != torch.int64:
        raise ValueError(f"positions are int64 [{tokens}], not {_described(positions)}")
    if tables.shape[0] != tokens or tables.dtype != torch.int32 or tables.stride(1) != 1:
        raise ValueError(f"tables are int32 [{tokens}, pages], not {_described(tables)}")
    return keys.shape[2]


def _described(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} with strides {x.stride()}"
