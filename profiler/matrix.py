"""A matrix of weights in one of the storage formats: what predictors, the store and the operators hand each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from profiler.blocks import decode, encode, scales_of
from profiler.formats import (
    ELEMENTS,
    MATRIX_FORMATS,
    WEIGHT_FORMATS,
    check_matrix,
    is_quantised,
    sixteen_bit_format,
)

__all__ = ["DTYPES", "FORMAT_OF", "MATRIX_FORMATS", "SIXTEEN_BIT", "WEIGHT_FORMATS", "Matrix"]

# How a matrix is typed in memory: 16-bit floats, or bytes.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, element) for name, element in ELEMENTS.items()}
SIXTEEN_BIT = {name: dtype for name, dtype in DTYPES.items() if not is_quantised(name)}
FORMAT_OF = {dtype: name for name, dtype in SIXTEEN_BIT.items()}


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weights `[rows, columns]`, on any device, perhaps a view of mapped memory whose rows are further apart.

    data: bf16, f16: `[rows, columns]` of that type; q8_0, q4_0, b1: uint8 `[rows, vector_bytes]`, a row two planes (see
    `profiler.blocks`). The elements of a row lie one after the other.

    Raises:
        ValueError: the data is not of that format, or not laid out so.
        UserError: a quantised format, and columns that are not a whole number of blocks.
    """

    data: torch.Tensor
    weight_format: str
    columns: int

    def __post_init__(self) -> None:
        data = self.data
        check_matrix(self.weight_format, self.columns, dtype_name(data), data.shape)
        width = data.shape[1]
        if (width > 1 and data.stride(1) != 1) or (len(data) > 1 and data.stride(0) < width):
            raise ValueError(
                f"the elements of a matrix's row lie one after the other, not with strides {data.stride()}"
            )

    @staticmethod
    def of(values: torch.Tensor) -> Matrix:
        """16-bit values `[rows, columns]` as they are.

        Raises:
            ValueError: they are of another type or shape.
        """
        return Matrix(values, sixteen_bit_format(dtype_name(values), values.shape), values.shape[1])

    @staticmethod
    def quantised(values: torch.Tensor, weight_format: str) -> Matrix:
        """Finite floats `[rows, columns]` rounded to a format, 16-bit ones included.

        Raises:
            UserError: columns that are not a whole number of blocks, or a value beyond the format's range of scales.
        """
        stored = encode(values, weight_format) if is_quantised(weight_format) else values.to(DTYPES[weight_format])
        return Matrix(stored, weight_format, values.shape[1])

    @property
    def rows(self) -> int:
        """Number of rows: of outputs, or of tokens of a vocabulary."""
        return self.data.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in weights."""
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, without what may lie between rows."""
        return self.data.numel() * self.data.element_size()

    @property
    def stride_bytes(self) -> int:
        """Bytes from one row to the next."""
        return (self.data.stride(0) if self.rows > 1 else self.data.shape[1]) * self.data.element_size()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.data.device

    def widened(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """fp32 `[k, columns]` of some rows: a slice of them, or whole numbers `[k]` on the matrix's device. Exact."""
        data = self.data[rows]
        return decode(data, self.weight_format, self.columns) if is_quantised(self.weight_format) else data.float()

    def to(self, device: torch.device | str) -> Matrix:
        """A copy on a device, its rows one after the other."""
        data = self.data.to(device, copy=True, memory_format=torch.contiguous_format)
        return Matrix(data, self.weight_format, self.columns)

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite. Reads all of a 16-bit matrix, the scales of a quantised one."""
        values = (
            scales_of(self.data, self.weight_format, self.columns) if is_quantised(self.weight_format) else self.data
        )
        return bool(torch.isfinite(values).all())


def dtype_name(tensor: torch.Tensor) -> str:
    """The type of a tensor's elements without torch: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")
