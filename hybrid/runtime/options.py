"""How a model is opened: the options of an engine, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hybrid.ops import cpu
from hybrid.runtime.choices import check_kv_format, known_mode
from hybrid.runtime.sizes import PREFILL_TOKENS
from hybrid.runtime.vram import DeviceMemory
from placement.plan import Mode, Plan, Unit
from profiler.artifacts import UserError
from profiler.predictor import PredictorSet
from profiler.thresholds import LARGEST_CUTOFF, Loss
from profiler.thresholds import MEND as THRESHOLDS_MEND

Device = Literal["cuda", "cpu", "interpreter"]
PrefillRows = Literal["auto", "computed", "streamed"]
PACE = 2.0
MOST_PACE = 1000.0


@dataclass(frozen=True)
class EngineOptions:
    """How a model is opened.

    mode: what is computed. plan: where; None puts everything on the host. second_device: what a plan's GPU is here,
    `cuda` or `cpu` (a stand-in made of ordinary memory), or for tests `interpreter` (a CUDA device's operators, by
    Triton's interpreter). context: tokens of one sequence, prompt and output; None takes the plan's, else the model's
    own up to 4096. max_sequences: that are in steps at once; others wait. kv_pages: of 16 tokens each, for keys and
    values of all of them; None has room for `max_sequences` texts of the whole context. Where fewer are left than are
    needed, the youngest sequences give theirs up for a while. pace: while others decode, a step that reads prompts
    takes about so many times a step's usual time. reuse_prefixes: texts that begin with the same pages share them, and
    pages are remembered until their room is needed. threads: of the CPU; None takes one for each performance core
    within the process's affinity and CPU quota. prefill_tokens: tokens of a prompt that are computed together: up to 16
    by the native operators where all of the model is in host memory, more by torch's matrix products; None takes what
    is faster. mmap: the model's files are used in place and read when they are used; else all is read into memory at
    once. cutoffs: of mode threshold, for each layer the magnitude up to which its activations count as zero; loss: what
    is known of what that costs. slowdown: of a stand-in and its host, how many times as long everything takes that a
    unit computes, so that two equal halves of a machine stand for unequal units; results stay the same to the last bit.
    cores: numbers of the CPUs that a unit computes on, with as many threads; a thread that calls the engine is there
    while it computes, and back where it was when a step ends. overlap: both units of a split layer compute at the same
    time; without, one after the other, to the same bits. prefetch: where a model in mode predicted is larger than
    memory, rows that are named are asked for together, not read when they are touched; the same bits too. prefill_rows:
    where many tokens are computed together, a layer's rows in host memory are computed there, or streamed to the GPU
    and computed there, or what takes less time by the figures of the machine; results are the same up to the order of
    sums. memory: of the second device; None asks it. tally: which neurons fire is counted, for `Engine.firing`.
    """

    mode: Mode
    plan: Plan | None = None
    second_device: Device | None = None
    predictors: PredictorSet | None = None
    context: int | None = None
    max_sequences: int = 1
    kv_pages: int | None = None
    pace: float = PACE
    reuse_prefixes: bool = True
    kv_format: str = "f16"
    threads: int | None = None
    prefill_tokens: int | None = None
    mmap: bool = True
    cutoffs: tuple[float, ...] | None = None
    loss: Loss | None = None
    slowdown: Mapping[str, float] = field(default_factory=dict)
    cores: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    overlap: bool = True
    prefetch: bool = True
    prefill_rows: PrefillRows = "auto"
    memory: DeviceMemory | None = None
    tally: bool = False

    def __post_init__(self) -> None:
        known_mode(self.mode)
        check_kv_format(self.kv_format)
        if self.second_device is not None and self.plan is None:
            raise UserError("a second device needs a plan that says what it holds: hybrid plan DIR --vram SIZE")
        if self.max_sequences < 1:
            raise UserError(f"{self.max_sequences} sequences at once make no sense; give 1 or more")
        if self.kv_pages is not None and self.kv_pages < 1:
            raise UserError(f"{self.kv_pages} pages for keys and values make no sense; give 1 or more")
        if not 1 <= self.pace <= MOST_PACE:
            raise UserError(
                f"a step with a prompt takes 1 to {MOST_PACE:g} times as long as one without, not {self.pace:g}"
            )
        if self.prefill_tokens is not None and not 1 <= self.prefill_tokens <= PREFILL_TOKENS:
            raise UserError(f"{self.prefill_tokens} prompt tokens together make no sense; give 1 to {PREFILL_TOKENS}")
        if self.prefill_rows not in get_args(PrefillRows):
            raise UserError(f"prefill_rows is {' or '.join(get_args(PrefillRows))}, not {self.prefill_rows!r:.40}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"{self.threads} threads make no sense; give 1 to 1024, or leave it to the machine")
        if (self.mode == "threshold") != (self.cutoffs is not None):
            raise UserError(
                f"mode threshold needs cutoffs, and no other mode has them: make them with: {THRESHOLDS_MEND}"
            )
        if not all(0 <= cutoff <= LARGEST_CUTOFF for cutoff in self.cutoffs or ()):
            raise UserError("a cutoff is a finite number of at least 0")
        check_slowdown(self.slowdown, self.second_device)
        check_cores(self.cores, self.threads, self.second_device)


def check_slowdown(slowdown: Mapping[str, float], second_device: str | None) -> None:
    """Refuse a slowdown that is no ratio, of no unit, or of what is not imitated."""
    for unit, ratio in slowdown.items():
        check_unit(unit)
        if not 1 <= ratio <= cpu.MAX_SLOWDOWN:
            raise UserError(f"a unit takes 1 to {cpu.MAX_SLOWDOWN:g} times as long as it does, not {ratio:g} times")
    if slowdown and second_device != "cpu":
        raise UserError(
            "a slowdown makes the stand-in and its host as unequal as a GPU and a CPU, and nothing else is slowed: "
            "use a plan with --second-device cpu, or leave --slowdown out"
        )


def check_cores(cores: Mapping[str, tuple[int, ...]], threads: int | None, second_device: str | None) -> None:
    """Refuse cores that say nothing, say it twice, or are of a unit that does not compute on cores."""
    for unit in cores:
        check_unit(unit)
    if not cores:
        return
    if threads is not None:
        raise UserError("a unit has as many threads as cores: give either threads or cores")
    if second_device != "cpu" and "gpu" in cores:
        raise UserError("only a stand-in computes on cores of the CPU: use a plan with second_device='cpu'")
    if second_device == "cpu" and len(cores) < len(get_args(Unit)):
        raise UserError("give cores to both units, gpu and cpu: one without would compute on the other's")
    named = [core for of_unit in cores.values() for core in of_unit]
    if not all(cores.values()) or len(set(named)) < len(named):
        raise UserError("each unit needs a core or more of its own, which no other one has")


def check_unit(unit: str) -> None:
    """Refuse what is not a unit's name."""
    if unit not in get_args(Unit):
        raise UserError(f"{unit!r} is no unit; units are {' and '.join(get_args(Unit))}")
