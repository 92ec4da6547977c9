"""A tensor of a checkpoint where it lies: its name, shape and type are known, its values are streamed in blocks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from profiler.artifacts import UserError

# The types that can be packed, under the names of the safetensors format.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class SourceTensor(ABC):
    """One tensor of one shard. `code` is its type as the safetensors format calls it."""

    name: str
    shard: Path
    code: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values.

        Raises:
            UserError: not a 16-, 32- or 64-bit float: the checkpoint is quantised.
        """
        if self.code not in FLOATS:
            raise UserError(
                f"{self.name} in {self.shard.name} is stored as {self.code}: a quantised checkpoint cannot be packed; "
                "pack the 16-bit original"
            )
        return FLOATS[self.code]

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension."""
        return self.nbytes // self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type in which the values are stored: their own, or bytes where they are quantised."""
        return self.dtype

    @property
    def stored_row(self) -> tuple[int, ...]:
        """The shape in which one index of the first dimension is stored."""
        return self.shape[1:]

    @property
    def block_format(self) -> str | None:
        """The weight format, q8_0 or q4_0, whose blocks the tensor holds as ggml lays them out; None for others."""
        return None

    @abstractmethod
    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """As stored, `rows` indices of the first dimension at a time, contiguous; each block is valid until the next.

        Of the indices `start` to `stop - 1`, by default of all.

        Raises:
            UserError: the shard cannot be read, or is shorter than it was.
        """

    def widened(self, block: torch.Tensor) -> torch.Tensor:
        """The values, of type `dtype`, of one of `blocks`: the block itself unless it is quantised."""
        return block


@dataclass(frozen=True)
class FileTensor(SourceTensor):
    """A tensor whose values lie one after the other in its shard, `offset` bytes from the beginning."""

    offset: int

    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `SourceTensor.blocks`."""
        count, row_bytes = (self.shape[0] if stop is None else stop) - start, self.stored_row_bytes
        buffer = bytearray(min(rows, count) * row_bytes)
        values = torch.frombuffer(buffer, dtype=self.stored_dtype).view(-1, *self.stored_row)
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset + start * row_bytes)
                for done in range(0, count, rows):
                    taken = min(rows, count - done)
                    if file.readinto(memoryview(buffer)[: taken * row_bytes]) != taken * row_bytes:
                        raise UserError(f"{self.shard} ended inside {self.name}; was it changed while it was read?")
                    yield values[:taken]
        except OSError as error:
            raise UserError(f"cannot read {self.name} from {self.shard}: {error.strerror}") from error

    @property
    def stored_row_bytes(self) -> int:
        """Bytes in the shard of one index of the first dimension."""
        return math.prod(self.stored_row) * self.stored_dtype.itemsize


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. The extremes say so, since NaN spreads to them, in one fast pass."""
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) and torch.isfinite(high))
