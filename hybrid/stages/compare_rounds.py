"""Contenders measured in turn, for several rounds, so that a machine which slows down slows all of them.

All stay open where the GPU and host memory hold them together; else each is opened for its turn, and ended after it.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil

from hybrid.runtime.memory import ProcessMemory, available_memory, process_memory
from hybrid.runtime.nvml import Nvml, free_vram, open_nvml, visible_device
from hybrid.stages.compare_contenders import Contender
from hybrid.stages.peers.protocol import Worker, WorkerError
from profiler.artifacts import format_size

Tell = Callable[[str, int, int], None]
WARM_UP = 2  # tokens decoded before anything is timed: weights are touched, kernels compiled
TRIES = 4  # to find how much of a program, which counts weights alone, keeps to the budget
A_PROCESS = 1 << 30  # bytes of host memory that one takes beside weights, about


@dataclass
class Figures:
    """What was measured of one contender.

    decode: tokens/s of each round. first_token_seconds: of every prompt of every round. memory: of its process, once
    it had decoded. vram: bytes of the GPU that its process took; beside a stand-in, what was counted there. summary:
    this engine's. losses, likeliest: of each passage. about: what it said of itself.
    """

    decode: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    memory: ProcessMemory | None = None
    vram: int | None = None
    summary: dict[str, Any] | None = None
    losses: list[float] = field(default_factory=list)
    likeliest: list[array[int]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seat:
    """A contender's place: its process, while it has one, and its figures so far.

    failure: why there are no more, if so; unscored: why its losses failed where it had decoded.
    """

    contender: Contender
    vocabulary: int
    figures: Figures = field(default_factory=Figures)
    failure: str | None = None
    unscored: str | None = None
    _worker: Worker | None = None
    _free_before: int | None = None
    _opened: bool = False

    def start(self) -> None:
        """Have a process that imports what it needs, beside those of others."""
        one = self.contender
        self._free_before = free_vram() if one.vram else None
        self._worker = Worker(one.module, one.python, one.environment)
        self._opened = False

    def take(self, turn: Callable[[Seat, Worker], None], warm_up: Sequence[int], keep: bool) -> None:
        """A turn: with the process that there is, or with one for this turn alone. A failure is noted, and final."""
        if self.failure is not None:
            return
        try:
            if self._worker is None:
                self.start()
            worker = self._open(warm_up)
            turn(self, worker)
            if not keep:
                self.end()
        except (WorkerError, OSError, psutil.Error) as error:
            self.failure = error.reason if isinstance(error, WorkerError) else str(error)
            self.end()

    def end(self) -> None:
        """End the process, if there is one, whatever it is doing."""
        if self._worker is not None:
            self._worker.close(at_once=True)
        self._worker = None

    def device_bytes(self, worker: Worker) -> int | None:
        """Bytes of the GPU that the process takes; None where the contender uses none, or nobody says."""
        if not self.contender.vram:
            return None
        if self.figures.summary is not None:
            process = (self.figures.summary["vram"] or {}).get("process")
            return int(process or sum(self.figures.summary["memory"].get("gpu", {}).values()))
        told, free = _told_by_driver(worker.pid), free_vram()
        if told is None and free is not None and self._free_before is not None:
            return max(0, self._free_before - free)
        return told

    def _open(self, warm_up: Sequence[int]) -> Worker:
        """The process with its model open; with less of it on the GPU if it took more than it may."""
        for _ in range(TRIES):
            assert self._worker is not None
            worker = self._worker
            if self._opened:
                return worker
            self.figures.about = worker.ask("open", **self.contender.arguments)
            found = self.figures.about.get("vocabulary", self.vocabulary)
            if found != self.vocabulary:
                message = f"its vocabulary has {found} tokens, and the model's {self.vocabulary}: is it the same model?"
                raise WorkerError(message, message)
            worker.ask("decode", prompt=list(warm_up), tokens=WARM_UP)
            self._opened = True
            over = (self.device_bytes(worker) or 0) - self.contender.vram if self.contender.lowered_by else 0
            if over <= 0:
                return worker
            lowered = self.contender.lowered(over)
            self.end()
            if lowered is None:
                break
            self.contender = lowered
            self.start()
        message = f"it takes more than the budget of {format_size(self.contender.vram)}, whatever it is given"
        raise WorkerError(message, message)


def measure(
    contenders: Sequence[Contender],
    vocabulary: int,
    model_bytes: int,
    prompts: Sequence[Sequence[int]],
    passages: Sequence[Sequence[int]],
    rounds: int,
    tokens: int,
    tell: Tell,
) -> list[Seat]:
    """Decode after every prompt in every round, then have each contender's losses on the passages.

    `tell(stage, done, total)` is told turns. Processes end with this call, however it ends.
    """
    seats = [Seat(contender, vocabulary) for contender in contenders]
    keep = fit_together(contenders, model_bytes)
    decoding = partial(_decode, prompts=prompts, tokens=tokens)
    try:
        for seat in seats if keep else ():
            _started(seat)
        for turn in range(rounds):
            for number, seat in enumerate(seats):
                seat.take(decoding, prompts[0], keep)
                tell("decoding", turn * len(seats) + number + 1, rounds * len(seats))
        for number, seat in enumerate(seats):
            if seat.failure is None and seat.contender.unscored is None:
                seat.take(partial(_score, passages=passages), prompts[0], keep)
                seat.unscored, seat.failure = seat.failure, None
            tell("perplexity", number + 1, len(seats))
    finally:
        for seat in seats:
            seat.end()
    return seats


def fit_together(contenders: Sequence[Contender], model_bytes: int) -> bool:
    """Whether all contenders' processes can be open at once, by what the GPU and host memory have free.

    Where the driver does not tell processes apart, each has the GPU to itself.
    """
    vram = sum(one.vram for one in contenders if one.arguments.get("device") != "cpu")
    ram = model_bytes + sum(one.ram + A_PROCESS for one in contenders)
    ram += sum(one.vram for one in contenders if one.arguments.get("device") == "cpu")
    return ram <= available_memory() and (not vram or (_driver() is not None and vram <= (free_vram() or 0)))


def _decode(seat: Seat, worker: Worker, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """One round of one contender."""
    figures, seconds = seat.figures, 0.0
    for prompt in prompts:
        answer = worker.ask("decode", prompt=list(prompt), tokens=tokens)
        figures.first_token_seconds.append(answer["first_token_seconds"])
        seconds += sum(answer["seconds"])
    figures.decode.append(tokens * len(prompts) / seconds)
    figures.memory = process_memory(worker.pid)
    if seat.contender.program == "hybrid":
        figures.summary = worker.ask("summary")
    figures.vram = seat.device_bytes(worker)


def _score(seat: Seat, worker: Worker, passages: Sequence[Sequence[int]]) -> None:
    """The losses of one contender."""
    for passage in passages:
        answer = worker.ask("score", ids=list(passage))
        seat.figures.losses.append(answer["loss"])
        seat.figures.likeliest.append(array("i", answer["likeliest"]))


def _started(seat: Seat) -> None:
    """Start a process ahead of its turn; what goes wrong is noted in its turn."""
    with contextlib.suppress(OSError):
        seat.start()


def _told_by_driver(process: int) -> int | None:
    """Bytes of the GPU that a process takes; None where NVML does not say."""
    driver = _driver()
    told: int | None = None if driver is None else driver.process(process)
    return told


def _driver() -> Nvml | None:
    """The GPU as NVML knows it, if it does."""
    device = visible_device()
    return None if device is None else open_nvml(device)
