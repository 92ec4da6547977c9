"""What a process takes of a device's memory, held against a plan and its budget. Arithmetic: no device is touched.

A budget is of the process: what it takes by being there (the CUDA context, libraries, kernels) counts as what is placed
does. So the allocator is allowed what the budget leaves beside that, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hybrid.runtime.memory import available_memory, total_memory
from profiler.artifacts import UserError, format_size

CONTEXT = "context"  # the purpose of what a process takes of a device by being there
MIB = 1 << 20


class DeviceMemory(Protocol):
    """The memory of what a plan calls its GPU, in bytes.

    where: how messages call it. growth: what the driver may take later, beside the context. rounding: what the
    allocator may hold beyond what it is asked for.
    """

    where: str
    growth: int
    rounding: int

    def total(self) -> int:
        """What the device has in all."""

    def free(self) -> int:
        """What no process has taken."""

    def context(self) -> int:
        """What this process takes of it beside what its allocator holds for others; 0 where being there is free."""

    def process(self) -> int | None:
        """All that this process takes of it; None where nobody says."""

    def allow(self, size: int) -> None:
        """Let the allocator hold so much more, or less where it is negative, than engines were allowed so far."""

    def give_back(self) -> None:
        """Return what the allocator keeps and nobody uses."""


class HostMemory:
    """Ordinary memory, for what stands for a GPU: being there takes nothing, and budgets are kept by counting."""

    where = "host memory"
    growth = 0
    rounding = 0

    def total(self) -> int:
        """See `DeviceMemory`."""
        return total_memory()

    def free(self) -> int:
        """See `DeviceMemory`."""
        return available_memory()

    def context(self) -> int:
        """See `DeviceMemory`."""
        return 0

    def process(self) -> int | None:
        """See `DeviceMemory`: what stands for a GPU cannot be told from the rest of the process."""
        return None

    def allow(self, size: int) -> None:
        """See `DeviceMemory`."""

    def give_back(self) -> None:
        """See `DeviceMemory`."""


@dataclass(frozen=True)
class Fit:
    """What opening a plan takes of a device, in bytes: `taken` in all, of which `context` are the process's own.

    budget: what it may take; available: what the device has for this process. where: as messages call the device.
    """

    taken: int
    context: int
    budget: int
    available: int
    where: str

    @property
    def problem(self) -> str | None:
        """What is too small, with both figures; None where all fits."""
        if self.taken <= min(self.budget, self.available):
            return None
        context = f", {format_size(self.context)} of it the CUDA context and kernels," if self.context else ""
        takes = f"the plan takes {format_size(self.taken)} of {self.where}{context}"
        if self.taken > self.available:
            missing = format_size(self.taken - self.available)
            return f"{takes} and {format_size(self.available)} are free, {missing} too little"
        return (
            f"{takes} and its budget is {format_size(self.budget)}, {format_size(self.taken - self.budget)} too little"
        )

    def require(self, model: object) -> None:
        """Refuse what does not fit; `model` is the directory that the commands in the message name.

        Raises:
            UserError: with both figures.
        """
        if self.taken > self.available:
            size = max(0, self.available) // MIB
            raise UserError(f"{self.problem}; close what uses it, or plan anew: hybrid plan {model} --vram {size}MiB")
        if self.problem is not None:
            raise UserError(
                f"{self.problem}: it counts on a smaller context; measure this machine with: hybrid hardware, and then "
                f"plan anew: hybrid plan {model} --vram SIZE"
            )


def context_cost(planned: int, memory: DeviceMemory) -> int:
    """Bytes to count for the context: what was planned, or what it takes and may come to take, if that is more."""
    found = memory.context()
    return max(planned, found + memory.growth + memory.rounding) if found else 0


def fit(taken: Mapping[str, int], budget: int, memory: DeviceMemory) -> Fit:
    """How bytes by purpose fit a device as it is now; the context counts with what it really costs, if that is more."""
    context = context_cost(taken[CONTEXT], memory)
    placed = sum(taken.values()) - taken[CONTEXT]
    return Fit(placed + context, context, budget, memory.free() + memory.context(), memory.where)


def allowance(budget: int, context: int, memory: DeviceMemory) -> int:
    """Bytes that the allocator may hold within a budget of which the context takes a part."""
    return max(0, budget - context + memory.rounding)


class Allowances:
    """What engines that are open together may take of one device: an allocator knows a single limit for all of them."""

    def __init__(self) -> None:
        self._before = self._allowed = 0

    def add(self, size: int, held: int) -> int | None:
        """The allocator's limit once `size` bytes more are allowed (fewer where negative); None: there is none.

        held: what it holds now. What it held before the first engine was opened is not theirs, and comes on top.
        """
        if not self._allowed:
            self._before = held
        self._allowed += size
        assert self._allowed >= 0, "no more is taken back than was allowed"
        return self._before + self._allowed if self._allowed else None


@dataclass(frozen=True)
class DeviceUse:
    """What a device's budget came to, in bytes.

    planned, placed: by purpose. process: all that the process takes of the device on behalf of the engine, as the
    driver tells it; None where it does not. total: what the device has.
    """

    where: str
    total: int
    budget: int
    planned: dict[str, int]
    placed: dict[str, int]
    process: int | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where more was taken than was planned, or than the budget allows."""
        found = []
        for purpose, size in self.placed.items():
            more = size - self.planned.get(purpose, 0)
            if more > 0:
                found.append(
                    f"{purpose} took {format_size(size)} of {self.where}, {format_size(more)} more than planned"
                )
        if self.process is not None and self.process > self.budget:
            more = self.process - self.budget
            found.append(
                f"the process takes {format_size(self.process)} of {self.where}, {format_size(more)} "
                "more than its budget; plan anew with a smaller --vram, or close what else it does there"
            )
        return tuple(found)
