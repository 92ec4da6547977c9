"""A plan: where every part of a model lives and is computed, with the bytes, times and digests that it was made from.

A baseline is a plan too, with the sparse machinery off. `plan_file` writes and reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from profiler.artifacts import UserError, format_size

Unit = Literal["gpu", "cpu"]
Residence = Literal["gpu", "ram", "flash"]
Memory = Literal["gpu", "ram", "flash"]
Mode = Literal["dense", "exact", "predicted", "threshold"]
Objective = Literal["latency", "impact"]
SolverName = Literal["highs", "cbc", "greedy"]
# optimal: proved, within the tolerance asked for. time limit: stopped; the gap says how far it may be off.
# unproved: no solver ran to an end; greedy's split, whose gap is bounded by the relaxation.
SolverStatus = Literal["optimal", "time limit", "unproved"]
# context: what a process takes of a GPU before anything is placed there.
PURPOSES = ("attention", "embeddings", "head", "norms", "predictors", "kv", "buffers", "context", "neurons")

MOST_BYTES = 1 << 60
MOST_LAYERS = 1 << 10
MOST_ROWS = 1 << 20
MOST_CONTEXT = 1 << 24
MOST_BATCH = 1 << 12
Bytes = dict[Memory, dict[str, int]]


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Refuse what is not a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"plan: {name} is {value!r:.40}; a whole number from {low} to {high} is expected")


def check_number(name: str, value: Any, high: float = 1e30) -> None:
    """Refuse what is not a number from 0 to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise UserError(f"plan: {name} is {value!r:.40}; a number from 0 to {high:.0e} is expected")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse what is not one of a `Literal`'s values."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise UserError(f"plan: {name} is {value!r:.40}; {' or '.join(get_args(choices))} is expected")


def check_text(name: str, value: Any, pattern: str) -> None:
    """Refuse what is not a text that the pattern matches from end to end."""
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise UserError(f"plan: {name} is {value!r:.80}, which is not a {name}")


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` (exclusive) of one layer, all living in one memory and computed by one unit.

    Rows outside GPU memory that the GPU computes are streamed to it for every token: baselines only.
    """

    start: int
    stop: int
    resident: Residence
    computed_on: Unit

    def __post_init__(self) -> None:
        check_whole("a segment's start", self.start, 0, MOST_ROWS)
        check_whole("a segment's stop", self.stop, self.start + 1, MOST_ROWS)
        check_choice("a segment's resident", self.resident, Residence)
        check_choice("a segment's computed_on", self.computed_on, Unit)
        if (self.computed_on, self.resident) == ("cpu", "gpu"):
            raise UserError(f"plan: rows resident on {self.resident} cannot be computed on the {self.computed_on}")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def streamed(self) -> bool:
        """Whether the rows are copied to the GPU for every token."""
        return self.computed_on == "gpu" and self.resident != "gpu"

    @property
    def on_flash(self) -> bool:
        """Whether the rows are read from the drive whenever they are needed."""
        return self.resident == "flash"


@dataclass(frozen=True)
class LayerPlan:
    """One layer: the unit of its attention, KV pages and predictor, and the segments of its rows, in row order."""

    attention: Unit
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        check_choice("a layer's attention", self.attention, Unit)
        if not self.segments or self.segments[0].start != 0:
            raise UserError("plan: the segments of a layer should start at row 0")
        for before, after in pairwise(self.segments):
            if after.start != before.stop:
                raise UserError(f"plan: a segment ends at row {before.stop} and the next starts at {after.start}")

    @property
    def crosses(self) -> bool:
        """Whether rows are computed on another unit than the attention, which costs one hand-over."""
        return any(segment.computed_on != self.attention for segment in self.segments)


@dataclass(frozen=True)
class Budgets:
    """What a plan may use. Bytes of GPU memory (0: no GPU) and of RAM (None: not limited), tokens, sequences."""

    vram: int
    ram: int | None
    context: int
    batch: int = 1

    def __post_init__(self) -> None:
        check_whole("the budget of GPU memory", self.vram, 0, MOST_BYTES)
        if self.ram is not None:
            check_whole("the budget of RAM", self.ram, 0, MOST_BYTES)
        check_whole("context", self.context, 1, MOST_CONTEXT)
        check_whole("batch", self.batch, 1, MOST_BATCH)


@dataclass(frozen=True)
class Digests:
    """Hex sha256 of what a plan was made from; `profile` is None where no profile was needed."""

    pack: str
    row_order: str
    profile: str | None

    def __post_init__(self) -> None:
        for name in ("pack", "row_order", "profile"):
            value = getattr(self, name)
            if name != "profile" or value is not None:
                check_text(f"{name} digest", value, "[0-9a-f]{64}")


@dataclass(frozen=True)
class SolverReport:
    """What found the placement and how good it is known to be.

    gap: how much less another placement can cost at most, as a share of this one's cost; None where unknown.
    cost: what was minimised, the seconds of a step (latency) or the frequency of what is not on the GPU, a dense part
    counting as the rows that its bytes would hold (impact). warnings: for the user.
    """

    name: SolverName
    status: SolverStatus
    gap: float | None
    seconds: float
    cost: float
    objective: Objective
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_choice("solver", self.name, SolverName)
        check_choice("the solver's status", self.status, SolverStatus)
        check_choice("objective", self.objective, Objective)
        if self.gap is not None:
            check_number("gap", self.gap)
        check_number("the solver's seconds", self.seconds)
        check_number("the placement's cost", self.cost)
        if len(self.warnings) > 100 or not all(isinstance(w, str) for w in self.warnings):
            raise UserError("plan: warnings should be a few texts")


@dataclass(frozen=True)
class Expected:
    """Predicted cost of one decode step, which gives every sequence of the batch its next token.

    token_seconds is the sum of attention, ffn, head and transfer (hand-overs and changes of unit). gpu_seconds and
    cpu_seconds: how long each unit works in it, alone; gpu_bytes and cpu_bytes: what each reads for it, of which
    flash_bytes come from the drive.
    """

    token_seconds: float
    attention_seconds: float
    ffn_seconds: float
    head_seconds: float
    transfer_seconds: float
    gpu_seconds: float
    cpu_seconds: float
    gpu_bytes: float
    cpu_bytes: float
    flash_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(name, value)


@dataclass(frozen=True)
class Placement:
    """Where everything is: all that bytes and times follow from.

    sparse: the machinery that skips rows is on; off in baselines, which compute everything. embeddings include learned
    positions; the head includes the final norm.
    """

    mode: Mode
    sparse: bool
    budgets: Budgets
    n_rows: int
    embeddings: Unit
    head: Unit
    layers: tuple[LayerPlan, ...]

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, Mode)
        if not isinstance(self.sparse, bool) or not (self.sparse or self.mode == "dense"):
            raise UserError("plan: sparse should be true or false, and false only where the mode is dense")
        check_whole("n_rows", self.n_rows, 1, MOST_ROWS)
        check_choice("embeddings", self.embeddings, Unit)
        check_choice("head", self.head, Unit)
        check_whole("the number of layers", len(self.layers), 1, MOST_LAYERS)
        for number, layer in enumerate(self.layers):
            if layer.segments[-1].stop != self.n_rows:
                raise UserError(f"plan: the segments of layer {number} do not cover its {self.n_rows} rows")
            if self.sparse and any(segment.streamed for segment in layer.segments):
                raise UserError(f"plan: layer {number} streams rows to the GPU, which only a baseline does")

    def gpu_rows(self, layer: int) -> int:
        """Rows of a layer that live in GPU memory."""
        return sum(segment.rows for segment in self.layers[layer].segments if segment.resident == "gpu")

    @property
    def rows(self) -> int:
        """Rows of all layers."""
        return len(self.layers) * self.n_rows

    @property
    def rows_on_gpu(self) -> int:
        """Those that live in GPU memory."""
        return sum(self.gpu_rows(layer) for layer in range(len(self.layers)))


@dataclass(frozen=True)
class Plan(Placement):
    """A placement with its name, what it was made from, what it takes and what it should give.

    hardware_digest is of the figures (`Hardware.digest`); bytes are exact, per memory and purpose; solver is None in a
    baseline, where nothing was solved for.
    """

    name: str
    digests: Digests
    hardware: str
    hardware_digest: str
    bytes: Bytes
    expected: Expected
    solver: SolverReport | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("name", self.name, r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
        check_text("hardware", self.hardware, r"(?s).{1,200}")
        check_text("hardware digest", self.hardware_digest, "[0-9a-f]{64}")
        if not isinstance(self.bytes, dict) or set(self.bytes) != set(get_args(Memory)):
            raise UserError("plan: bytes should be given for gpu, ram and flash")
        for memory, purposes in self.bytes.items():
            if not isinstance(purposes, dict) or set(purposes) != set(PURPOSES):
                raise UserError(f"plan: bytes on {memory} should be given for {', '.join(PURPOSES)}")
            for purpose, value in purposes.items():
                check_whole(f"bytes of {purpose} on {memory}", value, 0, MOST_BYTES)
        for memory, budget in (("gpu", self.budgets.vram), ("ram", self.budgets.ram)):
            total = self.total_bytes(memory)
            if budget is not None and total > budget:
                raise UserError(
                    f"plan: {format_size(total)} on {memory} exceed their budget of {format_size(budget)} by "
                    f"{total - budget} bytes"
                )

    @property
    def memories(self) -> tuple[Memory, ...]:
        """The memories that hold anything or have a budget: the GPU's and RAM always, flash where rows stay there."""
        return ("gpu", "ram", "flash") if self.total_bytes("flash") else ("gpu", "ram")

    def budget(self, memory: Memory) -> int | None:
        """Bytes that a memory may hold; None without a limit."""
        return {"gpu": self.budgets.vram, "ram": self.budgets.ram, "flash": None}[memory]

    def total_bytes(self, memory: Memory) -> int:
        """Bytes taken of one memory, for all purposes."""
        return sum(self.bytes[memory].values())
