"""A unit: one place that holds weights and computes. The host, a CUDA device, or a stand-in for one.

The host uses what is mapped in place. Every other unit copies what it is given, keeps count of it by purpose and
refuses to go over its budget, so that a plan's bytes and the bytes really taken can be compared.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from hybrid.ops import cpu, reference
from hybrid.ops.bank import Counts, RowBank
from hybrid.runtime.memory import available_memory, require_memory
from profiler.artifacts import UserError, format_size
from profiler.matrix import Matrix

# Room so large lies in pages of 2 MiB where the system has them: address translations are seldom missed (attention over
# 8,192 tokens of 32 heads took 1.6 ms instead of 2.1), and what is taken before it is used is at most an eighth of it.
HUGE_PAGES_FROM = 16 << 20


class Unit:
    """Memory with a budget, and the operators that run there.

    name: `gpu` or `cpu`, as plans call it; a stand-in for a GPU is named `gpu` too. pool: its threads, where it is made
    of host memory. natively: those compute many tokens too, 16 at a time, in the place of torch's products: each token
    multiplies only the rows that it names.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        pool: cpu.Pool | None,
        *,
        in_place: bool,
        budget: int | None,
        natively: bool = False,
    ) -> None:
        self.name = name
        self.device = device
        self.in_place = in_place
        self.budget = budget
        self.used: Counter[str] = Counter()
        self.pool = pool
        self.natively = natively

    @property
    def total(self) -> int:
        """Bytes taken so far."""
        return self.used.total()

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

    def place(self, tensor: torch.Tensor, purpose: str) -> torch.Tensor:
        """The tensor in this unit's memory: itself on the host, a counted copy elsewhere."""
        self.reserve(tensor.numel() * tensor.element_size(), purpose)
        if self.in_place:
            return tensor
        with self.explain_exhaustion(purpose):
            return tensor.to(self.device, copy=True)

    def place_matrix(self, matrix: Matrix, purpose: str) -> Matrix:
        """As `place`, for a matrix."""
        self.reserve(matrix.nbytes, purpose)
        if self.in_place:
            return matrix
        with self.explain_exhaustion(purpose):
            return matrix.to(self.device)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, purpose: str) -> torch.Tensor:
        """A new counted tensor in this unit's memory, zero-filled so that unwritten pages hold no NaN.

        In host memory the kernel gives pages of zeros when they are first used, so that room costs nothing until then.
        """
        size = dtype.itemsize
        for length in shape:
            size *= length
        self.reserve(size, purpose)
        with self.explain_exhaustion(purpose):
            if self.device.type != "cpu":
                return torch.zeros(shape, dtype=dtype, device=self.device)
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
            raise UserError(f"the {self.name} has no memory left for {purpose}; plan with a smaller budget") from error

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
    ) -> tuple[torch.Tensor, Counts]:
        """fp32 `[tokens, hidden]`, the bank's share of one FFN, and the rows computed for it; see `cpu.sparse_ffn`."""
        if self.pool is not None and self.natively and activations is None and gates is None:
            parts, counts = [], Counts(0, 0)
            for piece in pieces(len(x)):
                here = None if named is None else named[piece]
                part, done = cpu.sparse_ffn(self.pool, bank, x[piece], here, skip_inactive, cutoff=cutoff)
                parts.append(part)
                counts = Counts(counts.gated + done.gated, counts.finished + done.finished)
            return torch.cat(parts), counts
        if self.pool is not None:
            return cpu.sparse_ffn(self.pool, bank, x, named, skip_inactive, activations, gates, cutoff)
        rows, bias = bank.memory
        shape = (bank.weight_format, bank.hidden, bank.gated, bank.activation, bias)
        cutoff = bank.cutoff if cutoff is None else cutoff
        return reference.sparse_ffn(rows, *shape, x, named, skip_inactive, activations, cutoff, gates)

    def close(self) -> None:
        """Forget the memory, end the threads; tensors go with their owners."""
        self.used.clear()
        if self.pool is not None:
            self.pool.rest()


def pieces(tokens: int) -> list[slice]:
    """Tokens as the native operators take them together."""
    return [slice(at, at + cpu.MAX_TOKENS) for at in range(0, tokens, cpu.MAX_TOKENS)]


def host_unit(threads: int, slowdown: float = 1.0, cores: Sequence[int] = (), *, natively: bool = False) -> Unit:
    """The CPU, with rows used in place; with `cores`, by as many threads. See `EngineOptions` and `Unit`."""
    pool = cpu.Pool(len(cores) or threads, slowdown, cores)
    return Unit("cpu", torch.device("cpu"), pool, in_place=True, budget=None, natively=natively)


def stand_in_unit(
    threads: int, budget: int, planned: int = 0, slowdown: float = 1.0, cores: Sequence[int] = ()
) -> Unit:
    """A second device made of ordinary memory, `planned` bytes of which must be free; it has threads of its own."""
    require_memory(planned, available_memory(), "host memory")
    pool = cpu.Pool(len(cores) or threads, slowdown, cores)
    return Unit("gpu", torch.device("cpu"), pool, in_place=False, budget=budget)


def cuda_unit(budget: int, planned: int) -> Unit:
    """The first CUDA device, of which `planned` bytes must be free.

    Raises:
        UserError: torch sees none, or too little is free.
    """
    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here; use --device cpu, or --second-device cpu for a stand-in")
    require_memory(planned, torch.cuda.mem_get_info()[0], "GPU memory")
    return Unit("gpu", torch.device("cuda"), None, in_place=False, budget=budget)
