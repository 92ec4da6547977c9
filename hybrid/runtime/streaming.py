"""Rows of host memory on their way through a GPU: two buffers there, one filled while the other is computed.

A prompt's tokens share what is brought, so that from some number of tokens on the link costs less than the products of
the CPU (`placement.prefill`). The lane's thread brings chunk after chunk, and only rows that some token names where
those are few; whoever computes them asks for the next as soon as one is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from hybrid.ops.bank import RowBank
from hybrid.runtime.lane import Lane, ThreadLane
from hybrid.runtime.unit import Unit
from placement.prefill import PICKED, STREAM_BUFFERS

Streams = Callable[[int, int], bool]  # whether a layer's rows are streamed in a step of so many tokens
Around = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Chunk:
    """Rows of a bank in host memory that are brought together: a range of it, or some of it, int64 `[rows]`."""

    bank: RowBank
    rows: slice | torch.Tensor

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)

    @property
    def columns(self) -> slice | torch.Tensor:
        """Their places in the layer."""
        first = self.bank.first_row
        return (
            slice(first + self.rows.start, first + self.rows.stop)
            if isinstance(self.rows, slice)
            else self.rows + first
        )

    def copy_to(self, rows: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Fill the first places of `rows [n, stride]`, and of `bias [n]`, both in host memory."""
        for source, target in zip(self.bank.memory, (rows, bias), strict=True):
            if source is None or target is None:
                continue
            if isinstance(self.rows, slice):
                target[: len(self)].copy_(source[self.rows])
            else:
                torch.index_select(source, 0, self.rows, out=target[: len(self)])


class Slot:
    """Room for one chunk in a unit of host memory."""

    def __init__(self, unit: Unit, like: RowBank, room: int) -> None:
        rows, bias = like.memory
        self.rows = torch.empty(room, rows.shape[1], dtype=rows.dtype, device=unit.device)
        self.bias = None if bias is None else torch.empty(room, device=unit.device)

    def fill(self, chunk: Chunk) -> None:
        """Bring a chunk, in the lane's thread."""
        chunk.copy_to(self.rows, self.bias)

    def begin(self) -> None:
        """Before the chunk is computed."""

    def end(self) -> None:
        """Once it is."""

    def bank(self, chunk: Chunk) -> RowBank:
        """The chunk as rows of the unit."""
        count, of = len(chunk), chunk.bank
        bias = None if self.bias is None else self.bias[:count]
        shape = (of.weight_format, of.hidden, of.gated, of.activation, bias)
        return RowBank(self.rows[:count], *shape, cutoff=of.cutoff)


class CudaSlot(Slot):
    """Room on a CUDA device, and pinned room on the host, from where the device fetches a chunk in a stream of its own.

    The host goes on as soon as the pinned room is filled; streams wait for one another by events.
    """

    def __init__(self, unit: Unit, like: RowBank, room: int, stream: torch.cuda.Stream) -> None:
        super().__init__(unit, like, room)
        self._stream = stream
        self._staged = torch.empty_like(self.rows, device="cpu", pin_memory=True)
        self._staged_bias = None if self.bias is None else torch.empty(room, pin_memory=True)
        self._fetched = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._computed = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def fill(self, chunk: Chunk) -> None:
        """See `Slot`: the copy to the device is under way when it returns."""
        self._fetched.synchronize()  # what was staged before has left; the first time there is nothing to wait for
        chunk.copy_to(self._staged, self._staged_bias)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._computed)
            self.rows[: len(chunk)].copy_(self._staged[: len(chunk)], non_blocking=True)
            if self.bias is not None and self._staged_bias is not None:
                self.bias[: len(chunk)].copy_(self._staged_bias[: len(chunk)], non_blocking=True)
            self._fetched.record(self._stream)

    def begin(self) -> None:
        """See `Slot`."""
        torch.cuda.current_stream(self.rows.device).wait_event(self._fetched)

    def end(self) -> None:
        """See `Slot`."""
        self._computed.record(torch.cuda.current_stream(self.rows.device))


class RowStream:
    """The buffers of a unit, the lane that fills them, and when that pays.

    Args:
        unit: whose memory rows pass through; its budget counts the buffers as `buffers`.
        like: rows that pass through are like these.
        room: rows of each buffer.
        wanted: see `Streams`.
    """

    def __init__(self, unit: Unit, like: RowBank, room: int, wanted: Streams) -> None:
        self.unit, self.room, self.wanted = unit, room, wanted
        with unit.explain_exhaustion("buffers"):
            if unit.device.type == "cuda":
                stream = torch.cuda.Stream(unit.device)  # type: ignore[no-untyped-call]
                self.slots: list[Slot] = [CudaSlot(unit, like, room, stream) for _ in range(STREAM_BUFFERS)]
            else:
                self.slots = [Slot(unit, like, room) for _ in range(STREAM_BUFFERS)]
        self.lane: Lane = ThreadLane()

    @property
    def bytes(self) -> int:
        """Of the buffers on the unit."""
        tensors = [t for slot in self.slots for t in (slot.rows, slot.bias) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    def bring(self, banks: Sequence[RowBank], named: torch.Tensor | None, around: Around) -> Passage:
        """Begin to bring banks of host memory, of which tokens name `named` (bool `[tokens, rows of the layer]`)."""
        return Passage(self, chunks_of(banks, named, self.room), around)

    def close(self) -> None:
        """Stop the lane, forget the buffers."""
        self.lane.close()
        self.slots.clear()


class Passage:
    """Chunks on their way, the first of them from the beginning; a context that leaves the lane free."""

    def __init__(self, stream: RowStream, chunks: Sequence[Chunk], around: Around) -> None:
        self._stream, self._chunks, self._around = stream, chunks, around
        self._pending = False
        self._ask(0)

    @property
    def bytes(self) -> int:
        """Of all chunks, their biases not counted."""
        return sum(len(chunk) * chunk.bank.stride_bytes for chunk in self._chunks)

    def __iter__(self) -> Iterator[tuple[RowBank, slice | torch.Tensor]]:
        """Each chunk as a bank that holds until the next is asked for, and its rows' places in the layer."""
        for number, chunk in enumerate(self._chunks):
            self._join()
            self._ask(number + 1)
            slot = self._slot(number)
            slot.begin()
            yield slot.bank(chunk), chunk.columns
            slot.end()

    def __enter__(self) -> Passage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending:  # something failed meanwhile, and that is what is raised
            with contextlib.suppress(Exception):
                self._join()

    def _slot(self, number: int) -> Slot:
        return self._stream.slots[number % len(self._stream.slots)]

    def _ask(self, number: int) -> None:
        if number == len(self._chunks):
            return
        slot, chunk, around = self._slot(number), self._chunks[number], self._around

        def work() -> torch.Tensor:
            with around():
                slot.fill(chunk)
            return slot.rows

        self._stream.lane.submit(work)
        self._pending = True

    def _join(self) -> None:
        self._pending = False
        self._stream.lane.join()


def chunks_of(banks: Sequence[RowBank], named: torch.Tensor | None, room: int) -> list[Chunk]:
    """What is brought of banks, up to `room` rows at a time: every row where `named` is None, else those that some
    token names; where most are named, all rows of a stretch in which any is.
    """
    wanted = None if named is None else named.any(0).cpu()
    chunks: list[Chunk] = []
    for bank in banks:
        here = torch.ones(len(bank), dtype=torch.bool) if wanted is None else wanted[bank.first_row :][: len(bank)]
        picked = here.nonzero().view(-1)
        if len(picked) > PICKED * len(bank):
            stretches = [slice(at, min(at + room, len(bank))) for at in range(0, len(bank), room)]
            chunks += [Chunk(bank, stretch) for stretch in stretches if here[stretch].any()]
        elif len(picked):
            chunks += [Chunk(bank, part) for part in torch.split(picked, room)]
    return chunks
