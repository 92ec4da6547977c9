"""Tensors that a checkpoint holds in another form than the engine computes with, changed as they are streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hybrid.checkpoint.tensors import SourceTensor
from hybrid.spec import ModelSpec

FUSED = ("q", "k", "v")


@dataclass(frozen=True)
class FusedPart(SourceTensor):
    """Rows `first` to `first + width - 1` of each group of `group` rows of a whole tensor."""

    whole: SourceTensor
    group: int
    first: int
    width: int

    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `SourceTensor.blocks`."""
        stop = self.shape[0] if stop is None else stop
        block = torch.empty(max(0, min(rows, stop - start)), *self.shape[1:], dtype=self.dtype)
        filled = 0
        for run in self._runs(rows, start, stop):
            while len(run):
                taken = run[: len(block) - filled]
                block[filled : filled + len(taken)] = taken
                filled, run = filled + len(taken), run[len(taken) :]
                if filled == len(block):
                    yield block
                    filled = 0
        if filled:
            yield block[:filled]

    def _runs(self, rows: int, at: int, stop: int) -> Iterator[torch.Tensor]:
        """The rows `at` to `stop - 1` of the part, as they lie one after the other in the whole."""
        while at < stop:
            group, inside = divmod(at, self.width)
            count = min(self.width - inside, stop - at)
            begin = group * self.group + self.first + inside
            yield from self.whole.blocks(rows, begin, begin + count)
            at += count


@dataclass(frozen=True)
class Shifted(SourceTensor):
    """A tensor whose model adds a number to it: the sums, in fp32."""

    stored: SourceTensor
    shift: float

    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `SourceTensor.blocks`."""
        for block in self.stored.blocks(rows, start, stop):
            yield block.float() + self.shift


def fused_shape(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of q, k and v in one tensor, of the shape of one of them."""
    return (spec.q_size + 2 * spec.kv_size, *shape[1:])


def fused_part(whole: SourceTensor, spec: ModelSpec, part: str, shape: tuple[int, ...]) -> SourceTensor:
    """`q`, `k` or `v` of a tensor of all three, which holds for each key head its queries, the key and its value."""
    queries = spec.n_heads // spec.n_kv_heads
    first, heads = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}[part]
    size = spec.head_dim
    return FusedPart(
        whole.name, whole.shard, whole.code, shape, whole, (queries + 2) * size, first * size, heads * size
    )


def shifted(stored: SourceTensor, shift: float) -> SourceTensor:
    """A tensor of floats plus a number."""
    return Shifted(stored.name, stored.shard, "F32", stored.shape, stored, shift)
