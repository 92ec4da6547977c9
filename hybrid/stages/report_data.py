"""What a report shows, read from a model directory: figures only, no drawing. Every part names the file it is from.

A part that is not there, or that is of another model, is a `Missing` with the command that makes it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hybrid.stages.finding import find_outlines
from hybrid.stages.inspect import InspectReport, inspect
from hybrid.stages.report_parts import Missing, plain
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.evaluation_file import Evaluation, read_evaluation, why_stale
from hybrid.store.files import ModelFiles
from placement.plan import Plan
from placement.plan_file import read_plan
from profiler.artifacts import UserError
from profiler.predictor_outline import AnyPredictors
from profiler.profile import Profile, read_profile
from profiler.skew import SHARES, Given, across, given, mean
from profiler.thresholds import Thresholds

POINTS = 51  # of a curve, besides those of the hottest few percent
BINS = 200  # of a layer's neurons in the heat map
UNIONS = {"union4": 4, "union16": 16}  # counts of a profile, and the tokens of their windows
MOST_SHOWN = 20  # evaluations, and thresholds
Shares = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Curve:
    """For each of `Activity.shares`, the share of the activations that so many of the neurons give, chosen hottest.

    in_sample: on the text that they were chosen on. held_out: on text that had no part in the choice; None where the
    profile was not counted in halves.
    """

    in_sample: Given
    held_out: Given | None


@dataclass(frozen=True)
class Domain:
    """One kind of text, means over layers; held out: chosen on the other half of all text. chosen_on: for each other
    kind of text its name, and what neurons chosen on it give on this one.
    """

    name: str
    tokens: int
    curve: Curve
    chosen_on: tuple[tuple[str, Given], ...]


@dataclass(frozen=True, eq=False)
class Activity:
    """What a profile says. shares: of the neurons, at which curves are given.

    heat: `[layers, bins]`, mean frequency of the neurons of a bin, hottest first. silent: by layer, the share of the
    neurons that never fired. sparsity: by layer, the mean share of the neurons that are active in a token, named, or
    active in at least one of 4 and of 16 tokens.
    """

    source: str
    tokens: int
    neurons: int
    shares: tuple[float, ...]
    layers: tuple[Curve, ...]
    whole: Curve
    domains: tuple[Domain, ...]
    heat: Shares
    silent: Shares
    sparsity: dict[str, Shares]


@dataclass(frozen=True, eq=False)
class Predictors:
    """The predictors of a profile, their weights unread."""

    source: str
    found: AnyPredictors


@dataclass(frozen=True)
class Placed:
    """A plan. warning: why it cannot be run as the directory is now, if so."""

    source: str
    plan: Plan
    warning: str | None


@dataclass(frozen=True)
class Evaluated:
    """An evaluation. stale: why it says nothing of the model as it is now, if so."""

    source: str
    evaluation: Evaluation
    stale: str | None


@dataclass(frozen=True)
class Calibrated:
    """Thresholds of threshold mode."""

    source: str
    name: str
    thresholds: Thresholds


@dataclass(frozen=True, eq=False)
class ReportData:
    """All of a report. profiling, evaluating: the commands that make a profile and an evaluation. problems: files of
    the directory that cannot be read or are of another model.
    """

    path: Path
    profiling: str
    evaluating: str
    model: InspectReport
    activity: Activity | Missing
    predictors: Predictors | Missing
    placed: Placed | Missing
    evaluations: tuple[Evaluated, ...] | Missing
    thresholds: tuple[Calibrated, ...] | Missing
    problems: tuple[str, ...]


def collect(path: Path, profile: str = "default", plan: str = "default") -> ReportData:
    """Read a model directory, its profile and plan of those names, and all evaluations and thresholds.

    Raises:
        UserError: it is no model directory, or pack's files are damaged. Other files that are become `Missing`.
    """
    files, here = ModelFiles.open_files(path), shlex.quote(str(path))
    model = inspect(path)
    named = "" if profile == "default" else f" --name {shlex.quote(profile)}"
    profiling = f"hybrid profile {here} --text FILE{named}"
    planning = f"hybrid plan {here} --vram SIZE" + ("" if plan == "default" else f" --name {shlex.quote(plan)}")
    evaluating, calibrating = f"hybrid eval {here} --text FILE", f"hybrid calibrate {here} --text FILE --sparsity 0.5"
    problems: list[str] = []

    def every(folder: str, read: Callable[[str], T]) -> tuple[T, ...]:
        found = []
        for name in files.added_names(folder)[:MOST_SHOWN]:
            try:
                found.append(read(name))
            except UserError as error:
                problems.append(str(error))
        return tuple(found)

    def evaluated(name: str) -> Evaluated:
        found = read_evaluation(files.evaluation_path(name), evaluating)
        return Evaluated(f"evaluations/{name}.json", found, why_stale(found, files))

    def calibrated(name: str) -> Calibrated:
        return Calibrated(f"thresholds/{name}.json", name, require_thresholds(files, name))

    return ReportData(
        path=path,
        profiling=profiling,
        evaluating=evaluating,
        model=model,
        activity=_or_missing(lambda: _activity(files, profile, profiling), profiling),
        predictors=_or_missing(lambda: _predictors(files, profile), profiling),
        placed=_or_missing(lambda: _placed(files, plan, model.row_order_digest), planning),
        evaluations=every("evaluations", evaluated) or Missing("nothing has been evaluated", evaluating),
        thresholds=every("thresholds", calibrated) or Missing("no thresholds have been calibrated", calibrating),
        problems=tuple(problems),
    )


def activity(profile: Profile, source: str) -> Activity:
    """The curves, the heat map and the sparsity of a profile."""
    shares, layers = curve_shares(profile.neurons), range(profile.layers)
    parts = profile.parts
    halves = None if parts is None else parts.sum(0, dtype=np.int64)  # [2, layers, neurons]
    curves = tuple(
        Curve(
            given(profile.active[i], profile.active[i], shares),
            None if halves is None else across(halves[:, i], halves[:, i], shares),
        )
        for i in layers
    )
    domains = []
    if parts is not None and halves is not None:
        of_domain = parts.sum(1, dtype=np.int64)  # [domains, layers, neurons]
        for d, name in enumerate(profile.domains):
            own = of_domain[d]
            curve = Curve(
                mean([given(own[i], own[i], shares) for i in layers]),
                mean([across(halves[:, i], parts[d, :, i], shares) for i in layers]),
            )
            others = tuple(
                (plain(other), mean([given(of_domain[o][i], own[i], shares) for i in layers]))
                for o, other in enumerate(profile.domains)
                if o != d
            )
            domains.append(Domain(plain(name), sum(profile.part_tokens[d]), curve, others))
    counts = ["active", *(["named"] if profile.has_predictors else []), *UNIONS]
    return Activity(
        source=source,
        tokens=profile.tokens,
        neurons=profile.neurons,
        shares=shares,
        layers=curves,
        whole=Curve(
            mean([curve.in_sample for curve in curves]),
            None if halves is None else mean([curve.held_out for curve in curves if curve.held_out is not None]),
        ),
        domains=tuple(domains),
        heat=heat(profile),
        silent=(profile.active == 0).mean(1),
        sparsity={name: profile.frequency(name).mean(1) for name in counts},
    )


def curve_shares(neurons: int) -> tuple[float, ...]:
    """Where curves are given: evenly, closer together among the hottest few percent, and at `SHARES`, for tables."""
    shares = np.concatenate([np.linspace(0, 1, POINTS), np.geomspace(1 / max(neurons, 100), 0.1, 20), SHARES])
    return tuple(float(share) for share in np.unique(shares.round(6)) if share > 0)


def heat(profile: Profile) -> Shares:
    """`[layers, bins]`: frequencies of a layer's neurons, hottest first, in bins of almost the same size, averaged."""
    frequency = np.sort(profile.frequency(), axis=1)[:, ::-1]
    edges = np.linspace(0, profile.neurons, min(BINS, profile.neurons) + 1).astype(np.int64)
    return np.add.reduceat(frequency, edges[:-1], axis=1) / np.diff(edges)


def _activity(files: ModelFiles, name: str, mend: str) -> Activity:
    path, spec = files.profile_path(name), files.spec
    profile = read_profile(path, mend)
    if profile.source_digest != files.source_digest:
        raise UserError(f"{path} was made for another checkpoint")
    if (profile.layers, profile.neurons) != (spec.n_layers, spec.n_neurons):
        raise UserError(f"{path} counts other layers or neurons than the model has")
    return activity(profile, f"profiles/{name}.safetensors")


def _predictors(files: ModelFiles, name: str) -> Predictors:
    found = find_outlines(files, name)
    if found is None:
        raise UserError(f"there are no predictors at {files.predictors_path(name)}")
    return Predictors(f"predictors/{name}.safetensors", found)


def _placed(files: ModelFiles, name: str, row_order: str) -> Placed:
    path = files.plan_path(name)
    if not path.exists():
        raise UserError(f"there is no plan at {path}")
    plan = read_plan(path)
    if plan.digests.pack != files.pack_digest:
        raise UserError(f"{path} was made for another model, or the model was packed anew since")
    if (len(plan.layers), plan.n_rows) != (files.spec.n_layers, files.spec.n_neurons):
        raise UserError(f"{path} places other layers or rows than the model has")
    stale = "the rows were profiled anew since it was made" if plan.digests.row_order != row_order else None
    return Placed(f"plans/{name}.json", plan, stale)


def _or_missing(read: Callable[[], T], command: str) -> T | Missing:
    try:
        return read()
    except UserError as error:
        return Missing(str(error).partition("; make ")[0], command)
