"""Named rows are asked of the drive before they are computed, where a model is not all in memory.

Pages that are touched are read one after the other, each with neighbours that nobody named. Asked for together they are
read at the drive's full rate, and a layer early, where predictors look ahead, while other layers are computed ("LLM in
a flash", sections 3 and 4, reads what is predicted in parallel too).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.runtime.scheduler import SplitLayer
from hybrid.runtime.unit import Unit


class RowRequests:
    """Appends requests to programs that are recorded, for units that use the model's files in place.

    bool `named [MAX_TOKENS, rows]` is filled when the program comes there.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._helper: cpu.Lane | None = None  # on whose thread rows are asked for a layer early
        self._known: list[torch.Tensor] = []  # names for which they are

    def ahead(self, program: cpu.Program, following: SplitLayer, named: torch.Tensor) -> None:
        """For all of the layer that comes after this one; to be asked for while this one is computed."""
        for unit, banks in ((following.near, following.near_banks), (following.far, following.far_banks)):
            if unit is not None and banks and self._wanted and unit.in_place:
                self._helper = self._helper or cpu.Lane()
                self._known.append(named)
                self._record(program, banks, named, self._helper)

    def settle(self, program: cpu.Program) -> None:
        """What was asked for ahead is no longer read from its `named` after this."""
        if self._helper is not None:
            program.wait(self._helper)

    def now(self, program: cpu.Program, unit: Unit, banks: Sequence[RowBank], named: torch.Tensor) -> None:
        """For banks that are computed next, if they were not asked for ahead."""
        if self._wanted and unit.in_place and not any(named is known for known in self._known):
            assert unit.pool is not None, "files are mapped into host memory"
            program.computed_by(unit.pool)
            self._record(program, banks, named, None)

    def _record(
        self, program: cpu.Program, banks: Sequence[RowBank], named: torch.Tensor, lane: cpu.Lane | None
    ) -> None:
        for bank in banks:
            here, row_bytes = named.data_ptr() + bank.first_row, bank.row_bytes
            program.request(bank.addresses[0], bank.stride_bytes, row_bytes, len(bank), here, named.shape[1], lane)
