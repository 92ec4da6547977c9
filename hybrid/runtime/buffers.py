"""What steps hold on a plan's GPU, counted there before anything is placed."""

from __future__ import annotations

import logging

from hybrid.runtime.sizes import buffer_bytes, prefill_within, row_bytes, step_bytes, step_share
from hybrid.runtime.unit import Unit
from hybrid.store.directory import ModelDirectory
from placement.plan import Plan
from profiler.artifacts import format_size

log = logging.getLogger(__name__)


def reserve_buffers(directory: ModelDirectory, plan: Plan, context: int, unit: Unit, prefill: int) -> int:
    """Count on the GPU what steps hold there within the plan's buffers; for how many of `prefill` tokens there is room.

    Where a plan has no room for steps by the GPU's own operators, torch computes them, as is said.
    """
    spec, row, reserved = directory.spec, row_bytes(directory), plan.bytes["gpu"]["buffers"]
    step = step_share(spec, directory.weight_format, context, plan.budgets.vram)
    if reserved < step + buffer_bytes(spec, 1, context, row):  # planned before such steps were counted
        step = 0
    if unit.kernels and not step:
        unit.kernels = False
        log.warning(
            "the GPU's operators are torch's, which is slower: the plan leaves no %s for those made for it; plan anew, "
            "with a larger --vram",
            format_size(step_bytes(spec, directory.weight_format, context)),
        )
    prefill = min(prefill, prefill_within(spec, reserved - step, context, row))
    unit.reserve(step + buffer_bytes(spec, prefill, context, row), "buffers")
    return prefill
