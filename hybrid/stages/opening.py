"""Opens a model by what a user names: a directory or `demo`, a plan, a mode, a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.scheduler import MODES
from hybrid.stages.demo import DEMO, demo_directory
from hybrid.stages.model_predictors import read_model_predictors
from hybrid.stages.thresholds import find_thresholds, require_thresholds
from hybrid.store.directory import ModelDirectory
from placement.plan import Mode, Plan
from placement.plan_file import read_plan
from profiler.artifacts import UserError
from profiler.predictor import PredictorSet


def resolve(path: str | Path) -> Path:
    """The model directory that a name or a path means; `demo` is prepared on first use."""
    return demo_directory() if str(path) == DEMO else Path(path)


def find_plan(directory: ModelDirectory, plan: str | Path | None) -> Plan | None:
    """A plan by the name it has in the directory, or by its path."""
    if plan is None:
        return None
    path = Path(plan)
    if path.exists():
        return read_plan(path)
    if path.name != str(plan) or not directory.has_plan(path.name):
        raise UserError(f"{directory.path} has no plan {plan}; make one with: hybrid plan {directory.path} --vram SIZE")
    return read_plan(directory.plan_path(path.name))


def find_predictors(directory: ModelDirectory, profile: str) -> PredictorSet | None:
    """The predictors of a profile, or None where the model has none; refused where they are of another model."""
    path = directory.predictors_path(profile)
    if not path.exists():
        return None
    return read_model_predictors(directory, path)


def offered_modes(directory: ModelDirectory, profile: str = "default", thresholds: str = "default") -> list[Mode]:
    """What the model can be run in, dense first; predicted mode where the profile has predictors, and threshold mode,
    which is lossy, where thresholds were calibrated.
    """
    modes: list[Mode] = ["dense"]
    if directory.spec.has_exact_zeros:
        modes.append("exact")
    if find_predictors(directory, profile) is not None:
        modes.append("predicted")
    if find_thresholds(directory, thresholds) is not None:
        modes.append("threshold")
    return modes


def choose_mode(mode: str | None, directory: ModelDirectory, predictors: PredictorSet | None) -> Mode:
    """The mode asked for, or the cheapest one that the model offers; threshold only where it is asked for."""
    if mode is None:
        if predictors is not None:
            return "predicted"
        return "exact" if directory.spec.has_exact_zeros else "dense"
    for known in MODES:
        if mode == known:
            return known
    raise UserError(f"mode {mode!r} is not known; modes are {', '.join(MODES)}")


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
    slowdown: Mapping[str, float] | None = None,
    cores: Mapping[str, tuple[int, ...]] | None = None,
    beside: Engine | None = None,
) -> Engine:
    """Open an engine; see `hybrid.LLM` for the arguments.

    cutoffs: of mode threshold, in the place of those on disk. prefill_tokens, slowdown, cores: of `EngineOptions`.
    beside: an open engine of the same model; what it has read into memory for `mmap=False` is used, not read again.

    Raises:
        UserError: what was asked for cannot be opened; the message says how to mend it.
    """
    directory = ModelDirectory.open(resolve(path))
    try:
        if beside is not None:
            directory.share(beside.directory)
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
            cutoffs=cutoffs,
            loss=loss,
            slowdown=slowdown or {},
            cores=cores or {},
        )
        return Engine(directory, options)
    except BaseException:
        directory.close()
        raise
