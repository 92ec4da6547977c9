"""The neuron rows of a layer, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hybrid.store.rows import Ids, damaged, is_permutation
from hybrid.store.stored import StoredFile
from profiler.formats import vector_bytes
from profiler.matrix import Matrix


@dataclass(frozen=True)
class LayerRows:
    """The FFN of one layer: row r is all of neuron `neuron_ids[r]`.

    rows: `[n, stride]` in elements: 16-bit floats, or bytes where the weight format is quantised. In each, the
    vectors of `parts` in order, `hidden` weights each, then padding. neuron_ids: int32 `[n]`. bias: fp32 `[n]` by row,
    or None. file: that the rows and the bias are views of; where it is held, `keep` reads them.
    """

    file: StoredFile
    rows: torch.Tensor
    weight_format: str
    neuron_ids: Ids
    bias: torch.Tensor | None
    parts: tuple[str, ...]
    hidden: int

    def part(self, name: str) -> Matrix:
        """View `[n, hidden]` of `gate`, `up` or `down`; its rows are a stride apart."""
        width = vector_bytes(self.weight_format, self.hidden) // self.rows.element_size()
        first = self.parts.index(name) * width
        return Matrix(self.rows[:, first : first + width], self.weight_format, self.hidden)

    def keep(self) -> None:
        """Have all of them in memory from now on.

        Raises:
            UserError: the file is to be read and cannot be.
        """
        for tensor in (self.rows, self.bias):
            if tensor is not None:
                self.file.origin(tensor).keep()


def layer_rows(file: StoredFile, weight_format: str, parts: tuple[str, ...], hidden: int) -> LayerRows:
    """The rows of a neuron file; those of a held one are not read yet.

    Raises:
        UserError: its ids are no permutation.
    """
    rows = file.tensor("rows", keep=False)
    ids: Ids = file.tensor("neuron_ids").numpy().copy()
    if not is_permutation(ids, rows.shape[0]):
        raise damaged(file.path)
    has_bias = any(entry.name == "bias" for entry in file.layout.entries)
    bias = file.tensor("bias", keep=False) if has_bias else None
    return LayerRows(file, rows, weight_format, ids, bias, parts, hidden)
