"""Tensors that a checkpoint holds in another form than the engine computes with, changed as they are streamed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hybrid.checkpoint.tensors import SourceTensor
from hybrid.spec import ModelSpec

FUSED = ("q", "k", "v")


@dataclass(frozen=True)
class Rearranged(SourceTensor):
    """Rows of a whole tensor in another order: subclasses say in which, as runs of any length."""

    whole: SourceTensor

    @property
    def dtype(self) -> torch.dtype:
        """See `SourceTensor.dtype`."""
        return self.whole.dtype

    @property
    def stored_dtype(self) -> torch.dtype:
        """See `SourceTensor.stored_dtype`."""
        return self.whole.stored_dtype

    @property
    def stored_row(self) -> tuple[int, ...]:
        """See `SourceTensor.stored_row`."""
        return self.whole.stored_row

    @property
    def block_format(self) -> str | None:
        """See `SourceTensor.block_format`."""
        return self.whole.block_format

    def widened(self, block: torch.Tensor) -> torch.Tensor:
        """See `SourceTensor.widened`."""
        return self.whole.widened(block)

    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `SourceTensor.blocks`."""
        stop = self.shape[0] if stop is None else stop
        block = torch.empty(max(0, min(rows, stop - start)), *self.stored_row, dtype=self.stored_dtype)
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

    @abstractmethod
    def _runs(self, rows: int, at: int, stop: int) -> Iterator[torch.Tensor]:
        """The rows `at` to `stop - 1`, read from the whole about `rows` at a time."""


@dataclass(frozen=True)
class FusedPart(Rearranged):
    """Rows `first` to `first + width - 1` of each group of `group` rows of a whole tensor."""

    group: int
    first: int
    width: int

    def _runs(self, rows: int, at: int, stop: int) -> Iterator[torch.Tensor]:
        """As they lie one after the other in the whole."""
        while at < stop:
            group, inside = divmod(at, self.width)
            count = min(self.width - inside, stop - at)
            begin = group * self.group + self.first + inside
            yield from self.whole.blocks(rows, begin, begin + count)
            at += count


@dataclass(frozen=True)
class Unpaired(Rearranged):
    """Query or key rows of a model that rotates neighbours, in the order of one that rotates halves of a head.

    llama.cpp puts value `j` of a head's first half at 2 j, and of its second half at 2 j + 1.
    """

    head_dim: int

    def _runs(self, rows: int, at: int, stop: int) -> Iterator[torch.Tensor]:
        size = self.head_dim
        while at < stop:
            head, inside = divmod(at, size)
            count = min(size - inside, stop - at)
            [paired] = self.whole.blocks(size, head * size, (head + 1) * size)
            halves = paired.view(size // 2, 2, *self.stored_row).transpose(0, 1)
            yield halves.reshape(size, *self.stored_row)[inside : inside + count]
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


def unpaired(whole: SourceTensor, head_dim: int) -> SourceTensor:
    """A tensor of query or key heads put back into the order of checkpoints."""
    return Unpaired(whole.name, whole.shard, whole.code, whole.shape, whole, head_dim)


def shifted(stored: SourceTensor, shift: float) -> SourceTensor:
    """A tensor of floats plus a number."""
    return Shifted(stored.name, stored.shard, "F32", stored.shape, stored, shift)
