"""Device operators as a decode step has them: many in one graph, so that none of them waits to be launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hybrid.model.kv_cache import LayerPages
from hybrid.model.pages import pages_for
from hybrid.ops import cuda
from hybrid.ops.bank import RowBank
from hybrid.ops.captured import Captured
from hybrid.ops.scratch import Scratch
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.unit import Unit
from hybrid.stages.hardware_weights import Operators, Shape
from profiler.matrix import Matrix
from profiler.speeds import Access
from profiler.timing import Call


class DeviceCalls:
    """Calls of device operators for one token, into buffers that are there: what `Captured` takes."""

    def __init__(self, device: torch.device) -> None:
        from hybrid.ops import cuda_states, cuda_weights  # need Triton, which is optional

        self._weights, self._states = cuda_weights, cuda_states
        self.device, self._scratch = device, Scratch(device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)

    def linear(self, x: torch.Tensor, matrices: Sequence[Matrix]) -> Call:
        """Products of a state, fp32 `[1, in]`, with matrices that share it."""
        outputs = [(m, None, torch.empty(1, m.rows, device=self.device)) for m in matrices]
        return lambda: self._weights.linear(x, outputs, self._scratch)

    def ffn(self, bank: RowBank, x: torch.Tensor, named: torch.Tensor | None) -> Call:
        """The rows that are named, bool `[1, rows]`, or all of them: every one of these is finished."""
        y = torch.empty_like(x)
        return lambda: self._weights.sparse_ffn(bank, x, named, False, y, self.counts, self._scratch)

    def attend(self, heads: int, pages: LayerPages, context: int) -> Call:
        """A token at the end of a text of `context` tokens, in pages of any content."""
        q = torch.randn(1, heads, pages.keys.shape[3], device=self.device)
        y, positions = torch.empty_like(q), torch.tensor([context - 1], device=self.device)
        tables = torch.arange(pages_for(context), dtype=torch.int32, device=self.device)[None]
        return lambda: self._states.attend(q, pages, positions, tables, None, y, self._scratch, context)

    def predict(self, predictor: RowPredictor, x: torch.Tensor) -> Call:
        """The rows that a predictor names for a state, fp32 `[1, hidden]`."""
        named = torch.zeros(1, len(predictor.neuron_ids), dtype=torch.bool, device=self.device)
        ids = predictor.neuron_ids
        return lambda: self._weights.predict(x, predictor.predictor, ids, named, self._scratch)


class DeviceOperators(Operators):
    """As `Operators`, but a call goes over all weights: one graph, which is launched once for all of it.

    Many tokens go through torch's products, as a prompt does on a GPU.
    """

    def __init__(self, unit: Unit, rows: torch.Tensor, weight_format: str, shape: Shape) -> None:
        super().__init__(unit, rows, weight_format, shape)
        self.calls = calls = DeviceCalls(unit.device)
        x = self._x[:1].contiguous()
        masks = [self.masks[number % len(self.masks)] for number in range(len(self.banks))]
        turns: dict[Access, list[Call]] = {
            "dense": [calls.linear(x, [matrix]) for matrix in self.matrices],
            "rows": [calls.ffn(bank, x, mask) for bank, mask in zip(self.banks, masks, strict=True)],
            "passed": [calls.ffn(bank, x, None) for bank in self.banks],
        }
        self._turns = {access: Captured(made, unit.device) for access, made in turns.items()}
        self.moved |= {
            "dense": sum(matrix.nbytes for matrix in self.matrices),
            "rows": len(self.banks) * self._named * self.row_bytes,
            "passed": sum(len(bank) for bank in self.banks) * self.row_bytes,
        }

    def call(self, access: Access | None) -> Call:
        """See `Operators`."""
        return super().call(None) if access is None else self._turns[access].complete


def operators_over(unit: Unit, rows: torch.Tensor, weight_format: str, shape: Shape) -> Operators:
    """The operators that decode on a unit: device operators where they serve it."""
    made: Callable[[Unit, torch.Tensor, str, Shape], Operators] = Operators
    if unit.pool is None and cuda.available(unit.device):
        made = DeviceOperators
    return made(unit, rows, weight_format, shape)
