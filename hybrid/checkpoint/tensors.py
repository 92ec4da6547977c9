"""A tensor of a checkpoint where it lies: its name, shape and type are known, its values are streamed in blocks."""

from __future__ import annotations

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

    @abstractmethod
    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """The values, `rows` indices of the first dimension at a time, contiguous; each block is valid until the next.

        Of the indices `start` to `stop - 1`, by default of all.

        Raises:
            UserError: the shard cannot be read, or is shorter than it was.
        """


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. The extremes say so, since NaN spreads to them, in one fast pass."""
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) and torch.isfinite(high))
