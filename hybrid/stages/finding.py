"""What a user names, found: a model directory or `demo`, plans, predictors, modes. No torch: nothing computes here."""

from __future__ import annotations

from pathlib import Path

from hybrid.names import DEMO
from hybrid.runtime.choices import known_mode
from hybrid.stages.shipped import demo_path, is_profiled
from hybrid.stages.thresholds import find_thresholds
from hybrid.store.files import ModelFiles
from placement.plan import Mode, Plan
from placement.plan_file import read_plan
from profiler.artifacts import UserError
from profiler.predictor_header import Outline, read_outlines
from profiler.predictor_outline import AnyPredictors, PredictorSetOutline


def find_model(path: str | Path) -> Path | None:
    """The model directory that a name or a path means; None for a shipped model that was not made yet.

    `demo` is the shipped model, whatever lies here; `./demo`, and any `Path`, is a folder, which messages name in full
    where they would otherwise seem to mean the shipped one.
    """
    if path != DEMO:
        return Path(path).absolute() if str(Path(path)) == DEMO else Path(path)
    demo = demo_path()
    return demo if demo.exists() and is_profiled(demo) else None


def find_plan(files: ModelFiles, plan: str | Path | None) -> Plan | None:
    """A plan by the name it has in the directory, or by its path."""
    if plan is None:
        return None
    path = Path(plan)
    if path.exists():
        return read_plan(path)
    if path.name != str(plan) or not files.has_plan(path.name):
        raise UserError(f"{files.path} has no plan {plan}; make one with: hybrid plan {files.path} --vram SIZE")
    return read_plan(files.plan_path(path.name))


def find_outlines(files: ModelFiles, profile: str) -> PredictorSetOutline[Outline] | None:
    """What the predictors of a profile are, weights aside, or None where the model has none.

    Raises:
        UserError: their file is damaged, or they are of another model.
    """
    path = files.predictors_path(profile)
    if not path.exists():
        return None
    found = read_outlines(path, predictors_mend(files))
    require_fit(files, path, found)
    return found


def require_fit(files: ModelFiles, path: Path, predictors: AnyPredictors) -> None:
    """Refuse predictors, read from `path`, that are of another model."""
    mend = predictors_mend(files)
    if predictors.source_digest != files.source_digest:
        raise UserError(f"{path} was made for another model; make predictors of this one with: {mend}")
    spec = files.spec
    if not predictors.fits(spec.n_layers, spec.hidden_size, spec.n_neurons):
        raise UserError(f"{path} is damaged: its sizes are not the model's; make predictors anew with: {mend}")


def predictors_mend(files: ModelFiles) -> str:
    """The command that makes a model's predictors."""
    return f"hybrid profile {files.path} --text FILE"


def offered_modes(files: ModelFiles, profile: str = "default", thresholds: str = "default") -> list[Mode]:
    """What the model can be run in, dense first; predicted mode where the profile has predictors, and threshold mode,
    which is lossy, where thresholds were calibrated.
    """
    modes: list[Mode] = ["dense"]
    if files.spec.has_exact_zeros:
        modes.append("exact")
    if find_outlines(files, profile) is not None:
        modes.append("predicted")
    if find_thresholds(files, thresholds) is not None:
        modes.append("threshold")
    return modes


def choose_mode(mode: str | None, files: ModelFiles, predictors: AnyPredictors | None) -> Mode:
    """The mode asked for, or the cheapest one that the model offers; threshold only where it is asked for."""
    if mode is not None:
        return known_mode(mode)
    if predictors is not None:
        return "predicted"
    return "exact" if files.spec.has_exact_zeros else "dense"
