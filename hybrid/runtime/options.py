"""How a model is opened: the options of an engine, validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hybrid.runtime.choices import check_kv_format, known_mode
from hybrid.runtime.sizes import PREFILL_TOKENS
from placement.plan import Mode, Plan
from profiler.artifacts import UserError
from profiler.predictor import PredictorSet
from profiler.thresholds import LARGEST_CUTOFF, Loss
from profiler.thresholds import MEND as THRESHOLDS_MEND


@dataclass(frozen=True)
class EngineOptions:
    """How a model is opened.

    mode: what is computed. plan: where; None puts everything on the host. second_device: what a plan's GPU is here,
    `cuda` or `cpu` (a stand-in made of ordinary memory). context: tokens of one sequence, prompt and output; None takes
    the plan's, else the model's own up to 4096. threads: of the CPU; None takes one for each performance core within
    the process's affinity and CPU quota. prefill_tokens: tokens of a prompt that are computed together: up to 16 by the
    native operators where all of the model is in host memory, more by torch's matrix products; None takes what is
    faster. mmap: the model's files are used in place and read when they are used; else all is read into memory at once.
    cutoffs: of mode threshold, for each layer the magnitude up to which its activations count as zero; loss: what is
    known of what that costs.
    """

    mode: Mode
    plan: Plan | None = None
    second_device: Literal["cuda", "cpu"] | None = None
    predictors: PredictorSet | None = None
    context: int | None = None
    max_sequences: int = 1
    kv_format: str = "f16"
    threads: int | None = None
    prefill_tokens: int | None = None
    mmap: bool = True
    cutoffs: tuple[float, ...] | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        known_mode(self.mode)
        check_kv_format(self.kv_format)
        if self.second_device is not None and self.plan is None:
            raise UserError("a second device needs a plan that says what it holds: hybrid plan DIR --vram SIZE")
        if self.prefill_tokens is not None and not 1 <= self.prefill_tokens <= PREFILL_TOKENS:
            raise UserError(f"{self.prefill_tokens} prompt tokens together make no sense; give 1 to {PREFILL_TOKENS}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"{self.threads} threads make no sense; give 1 to 1024, or leave it to the machine")
        if (self.mode == "threshold") != (self.cutoffs is not None):
            raise UserError(
                f"mode threshold needs cutoffs, and no other mode has them: make them with: {THRESHOLDS_MEND}"
            )
        if not all(0 <= cutoff <= LARGEST_CUTOFF for cutoff in self.cutoffs or ()):
            raise UserError("a cutoff is a finite number of at least 0")
