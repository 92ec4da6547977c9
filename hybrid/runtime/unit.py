"""A unit: one place that holds weights and computes. The host, a CUDA device, or a stand-in for one.

The host uses what is mapped in place. Every other unit copies what it is given, keeps count of it by purpose and
refuses to go over its budget, so that a plan's bytes and the bytes really taken can be compared. On a device the budget
is the process's, and the allocator's limit.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from hybrid.ops import cpu, reference
from hybrid.ops.bank import Counts, RowBank
from hybrid.ops.cuda import available
from hybrid.runtime.upload import Arena, InMemory, Source, Upload
from hybrid.runtime.vram import CONTEXT, DeviceMemory, DeviceUse, HostMemory, allowance, context_cost
from profiler.artifacts import UserError, format_size
from profiler.matrix import Matrix

# Room so large lies in pages of 2 MiB where the system has them: address translations are seldom missed (attention over
# 8,192 tokens of 32 heads took 1.6 ms instead of 2.1), and what is taken before it is used is at most an eighth of it.
HUGE_PAGES_FROM = 16 << 20
ARENA_SLACK = 8 << 20  # bytes that aligning thousands of tensors may take; within what allocators are taken to round up


class Unit:
    """Memory with a budget, and the operators that run there.

    name: `gpu` or `cpu`, as plans call it; a stand-in for a GPU is named `gpu` too. pool: its threads, where it is made
    of host memory. natively: those compute many tokens too, 16 at a time, in the place of torch's products: each token
    multiplies only the rows that it names. kernels: without a pool, whether the device operators in Triton compute here
    as well as torch's. memory: what tells how much there is, None of ordinary memory; the host, in place, has none.
    upload: what copies there.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        pool: cpu.Pool | None,
        *,
        in_place: bool,
        budget: int | None,
        kernels: bool = False,
        natively: bool = False,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.in_place = in_place
        self.budget = budget
        self.used: Counter[str] = Counter()
        self.pool = pool
        self.kernels = kernels
        self.natively = natively
        self.memory = memory or (None if in_place else HostMemory())
        self.upload = Upload(device)
        self._arena: Arena | None = None
        self._allowed = self._of_others = 0

    @property
    def total(self) -> int:
        """Bytes taken so far."""
        return self.used.total()

    def admit(self, planned: Mapping[str, int]) -> None:
        """Take the device for a plan's bytes by purpose: the context is counted, the allocator limited to what the
        budget leaves beside it, and room made for what is to be placed.

        Raises:
            UserError: the device has no room for it.
        """
        assert self.budget is not None and self.memory is not None, "the host has no plan of its own"
        context = context_cost(planned[CONTEXT], self.memory)
        self._of_others = max(0, (self.memory.process() or 0) - self.memory.context())
        if context:
            self.reserve(context, CONTEXT)
        self._allowed = allowance(self.budget, context, self.memory)
        self.memory.allow(self._allowed)
        if self.pool is None:
            placed = sum(size for purpose, size in planned.items() if purpose not in (CONTEXT, "buffers"))
            with self.explain_exhaustion("what is to be placed"):
                self._arena = Arena(self.device, placed + ARENA_SLACK)

    def use(self, planned: Mapping[str, int]) -> DeviceUse | None:
        """What the plan's budget came to; None of a unit that has none."""
        if self.memory is None or self.budget is None:
            return None
        process = self.memory.process()
        return DeviceUse(
            where=self.memory.where,
            total=self.memory.total(),
            budget=self.budget,
            planned=dict(planned),
            placed=dict(self.used),
            process=None if process is None else max(0, process - self._of_others),
        )

    def reserve(self, size: int, purpose: str) -> None:
        """Count bytes that are taken for a purpose.

        Raises:
            UserError: the budget does not hold them.
        """
        if self.budget is not None and self.total + size > self.budget:
            missing = self.total + size - self.budget
            raise UserError(
                f"{format_size(missing)} are missing on the {self.name} for {purpose}: its budget of "
                f"{format_size(self.budget)} holds {format_size(self.total)} already; plan anew with a larger --vram"
            )
        self.used[purpose] += size

    def place(self, tensor: torch.Tensor, purpose: str, source: Source | None = None) -> torch.Tensor:
        """The tensor in this unit's memory: itself on the host, a counted copy elsewhere.

        source: where the copy's bytes come from, and what is then forgotten there; None takes them from the tensor.

        Raises:
            UserError: the budget or the device does not hold them, or a file cannot be read.
        """
        self.reserve(tensor.nbytes, purpose)
        if self.in_place:
            if source is not None:
                source.keep()
            return tensor
        with self.explain_exhaustion(purpose):
            copy = self._room(tensor.shape, tensor.dtype)
            self.upload.copy(InMemory(tensor) if source is None else source, copy)
        return copy

    def place_matrix(self, matrix: Matrix, purpose: str, source: Source | None = None) -> Matrix:
        """As `place`, for a matrix; its rows lie one after the other in a copy."""
        return replace(matrix, data=self.place(matrix.data, purpose, source))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, purpose: str) -> torch.Tensor:
        """A new counted tensor in this unit's memory, zero-filled so that unwritten pages hold no NaN.

        In host memory the kernel gives pages of zeros when they are first used, so that room costs nothing until then.
        """
        size = dtype.itemsize
        for length in shape:
            size *= length
        self.reserve(size, purpose)
        with self.explain_exhaustion(purpose):
            if self._arena is not None or self.device.type != "cpu":
                return self._room(shape, dtype).zero_()
            room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if size >= HUGE_PAGES_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without them: small pages do
                    room.madvise(mmap.MADV_HUGEPAGE)
            return torch.frombuffer(room, dtype=dtype).view(shape)

    @contextlib.contextmanager
    def explain_exhaustion(self, purpose: str) -> Iterator[None]:
        """Turn the allocator's failure into an error that says what to do."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, OSError) as error:
            free = "" if self.memory is None else f", and {format_size(self.memory.free())} are free"
            raise UserError(
                f"the {self.name} has no memory left for {purpose}: {format_size(self.total)} are taken of it{free}; "
                "close what uses it, or plan anew with a smaller --vram or --context"
            ) from error

    def exhausted(self, error: BaseException, doing: str) -> UserError:
        """What to raise where the unit ran out of memory while `doing` something, whose memory is given back.

        An error keeps the variables of every call that it left, and so the tensors: they are let go.
        """
        traceback.clear_frames(error.__traceback__)
        if self.memory is not None:
            self.memory.give_back()
        figures = f"{format_size(self.total)} are placed or planned there"
        if self.budget is not None:
            figures += f" of a budget of {format_size(self.budget)}"
        if self.memory is not None:
            figures += f", and {format_size(self.memory.free())} of the device are free"
        return UserError(
            f"the {self.name} ran out of memory in {doing}: {figures}; give fewer or shorter prompts at once, "
            "a smaller --context, or plan anew with another --vram"
        )

    def _room(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        piece = None if self._arena is None else self._arena.take(size)
        if piece is None:
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        return piece.view(dtype).view(tuple(shape))

    def linear(self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
        """fp32 `[tokens, out]`: `x @ weightᵀ + bias`."""
        if self.pool is None:
            return reference.linear(x, weight, bias)
        if self.natively:
            return torch.cat([cpu.linear(self.pool, x[piece], weight, bias) for piece in pieces(len(x))])
        return cpu.linear(self.pool, x, weight, bias)

    def sparse_ffn(
        self,
        bank: RowBank,
        x: torch.Tensor,
        named: torch.Tensor | None,
        skip_inactive: bool,
        activations: torch.Tensor | None = None,
        gates: torch.Tensor | None = None,
        cutoff: float | None = None,
        fired: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Counts]:
        """fp32 `[tokens, hidden]`, the bank's share of one FFN, and the rows computed for it; see `cpu.sparse_ffn`."""
        if self.pool is not None and self.natively and activations is None and gates is None:
            parts, counts = [], Counts(0, 0)
            for piece in pieces(len(x)):
                here = None if named is None else named[piece]
                part, done = cpu.sparse_ffn(self.pool, bank, x[piece], here, skip_inactive, cutoff=cutoff, fired=fired)
                parts.append(part)
                counts = Counts(counts.gated + done.gated, counts.finished + done.finished)
            return torch.cat(parts), counts
        if self.pool is not None:
            return cpu.sparse_ffn(self.pool, bank, x, named, skip_inactive, activations, gates, cutoff, fired)
        rows, bias = bank.memory
        shape = (bank.weight_format, bank.hidden, bank.gated, bank.activation, bias)
        cutoff = bank.cutoff if cutoff is None else cutoff
        return reference.sparse_ffn(rows, *shape, x, named, skip_inactive, activations, cutoff, gates, fired)

    def close(self) -> None:
        """Forget the memory, end the threads. A device gets its memory back now; elsewhere it goes with its owners."""
        self.used.clear()
        if self.pool is not None:
            self.pool.rest()
        self.upload.close()
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        if self.memory is not None:
            self.memory.allow(-self._allowed)
            self.memory.give_back()
            self._allowed = 0


def pieces(tokens: int) -> list[slice]:
    """Tokens as the native operators take them together."""
    return [slice(at, at + cpu.MAX_TOKENS) for at in range(0, tokens, cpu.MAX_TOKENS)]


def host_unit(threads: int, slowdown: float = 1.0, cores: Sequence[int] = (), *, natively: bool = False) -> Unit:
    """The CPU, with rows used in place; with `cores`, by as many threads. See `EngineOptions` and `Unit`."""
    pool = cpu.Pool(len(cores) or threads, slowdown, cores)
    return Unit("cpu", torch.device("cpu"), pool, in_place=True, budget=None, natively=natively)


def stand_in_unit(
    threads: int, budget: int, memory: DeviceMemory | None = None, slowdown: float = 1.0, cores: Sequence[int] = ()
) -> Unit:
    """A second device made of ordinary memory, with threads of its own. memory: see `Unit`."""
    pool = cpu.Pool(len(cores) or threads, slowdown, cores)
    return Unit("gpu", torch.device("cpu"), pool, in_place=False, budget=budget, memory=memory)


def cuda_unit(budget: int, memory: DeviceMemory) -> Unit:
    """The first CUDA device. memory: see `Unit`."""
    device = torch.device("cuda")
    return Unit("gpu", device, None, in_place=False, budget=budget, kernels=available(device), memory=memory)


def interpreted_unit(budget: int, memory: DeviceMemory) -> Unit:
    """A GPU whose operators are those of a CUDA device, computed by Triton's interpreter in host memory: for tests.

    Raises:
        UserError: Triton is missing, or was not told to interpret.
    """
    device = torch.device("cpu")
    if not available(device):
        raise UserError("a GPU is interpreted with Triton, and TRITON_INTERPRET=1 in the environment")
    return Unit("gpu", device, None, in_place=False, budget=budget, kernels=True, memory=memory)
