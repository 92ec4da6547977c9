"""Opens a model by what a user names: a directory or `demo`, a plan, a mode, a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions, PrefillRows
from hybrid.stages.demo import demo_directory
from hybrid.stages.finding import choose_mode, find_model, find_plan
from hybrid.stages.model_predictors import find_predictors
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.directory import ModelDirectory
from placement.plan import Plan
from profiler.artifacts import UserError


def resolve(path: str | Path) -> Path:
    """The model directory that a name or a path means; `demo` is prepared on first use."""
    return find_model(path) or demo_directory()


def open_engine(
    path: str | Path,
    *,
    mode: str | None = None,
    plan: str | Path | Plan | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    context: int | None = None,
    max_sequences: int = 1,
    kv_format: str = "f16",
    threads: int | None = None,
    mmap: bool = True,
    profile: str = "default",
    thresholds: str = "default",
    cutoffs: tuple[float, ...] | None = None,
    prefill_tokens: int | None = None,
    prefill_rows: PrefillRows = "auto",
    slowdown: Mapping[str, float] | None = None,
    cores: Mapping[str, tuple[int, ...]] | None = None,
    overlap: bool = True,
) -> Engine:
    """Open an engine; see `hybrid.LLM` for the arguments.

    cutoffs: of mode threshold, in the place of those on disk. prefill_tokens, prefill_rows, slowdown, cores and overlap
    are those of `EngineOptions`.

    Raises:
        UserError: what was asked for cannot be opened; the message says how to mend it.
    """
    directory = ModelDirectory.open(resolve(path))
    try:
        predictors = find_predictors(directory, profile)
        found = plan if isinstance(plan, Plan) else find_plan(directory, plan)
        if device == "cuda" and found is None:
            raise UserError(f"a GPU needs a plan that says what it holds: hybrid plan {directory.path} --vram SIZE")
        chosen = choose_mode(mode, directory, predictors)
        loss = None
        if chosen == "threshold" and cutoffs is None:
            calibrated = require_thresholds(directory, thresholds)
            cutoffs, loss = calibrated.cutoffs, calibrated.loss
        options = EngineOptions(
            mode=chosen,
            plan=found,
            second_device=device if found is not None else None,
            predictors=predictors if chosen == "predicted" else None,
            context=context,
            max_sequences=max_sequences,
            kv_format=kv_format,
            threads=threads,
            mmap=mmap,
            prefill_tokens=prefill_tokens,
            prefill_rows=prefill_rows,
            cutoffs=cutoffs,
            loss=loss,
            slowdown=slowdown or {},
            cores=cores or {},
            overlap=overlap,
        )
        return Engine(directory, options)
    except BaseException:
        directory.close()
        raise
