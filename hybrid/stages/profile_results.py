"""What a profiling run leaves: files in the model directory, and a report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybrid.stages.profile_checkpoint import unfinished
from hybrid.stages.profile_estimate import Estimate
from hybrid.stages.profile_rounds import Clock
from hybrid.store.directory import ModelDirectory
from hybrid.store.files import ModelFiles
from profiler.artifacts import explain_os_errors, only_writer
from profiler.predictor import PredictorSet
from profiler.predictor_file import write_predictors
from profiler.predictor_outline import PredictorQuality
from profiler.profile import Profile, write_profile
from profiler.skew import Skew, hot_share, measure_skew


@dataclass(frozen=True)
class LayerReport:
    """One layer: what its predictor does on tokens kept apart (None without one), the share of neurons that is active,
    and the share of them behind 80 % of activations.
    """

    quality: PredictorQuality | None
    active: float
    hot_share: float


@dataclass(frozen=True)
class ProfileReport:
    """What was profiled and written. clock: what this run took, without what an earlier one had done.

    ranks, predictor_bytes: of predictors, by layer and of all; none without. skew: what the hottest neurons of one text
    give on another.
    """

    path: Path
    name: str
    tokens: int
    domains: tuple[str, ...]
    ranks: list[int]
    predictor_bytes: int
    layers: list[LayerReport]
    skew: Skew | None
    removed: list[Path]
    estimate: Estimate | None = None
    clock: Clock | None = None
    notes: tuple[str, ...] = ()


def make_report(
    path: Path,
    name: str,
    counted: Profile,
    predictors: PredictorSet | None,
    removed: list[Path],
    estimate: Estimate | None = None,
    clock: Clock | None = None,
    notes: tuple[str, ...] = (),
) -> ProfileReport:
    """The report of what was written."""
    active = counted.frequency().mean(1)
    layers = [
        LayerReport(predictors.quality[i] if predictors else None, float(active[i]), hot_share(counted, i))
        for i in range(counted.layers)
    ]
    return ProfileReport(
        path=path,
        name=name,
        tokens=counted.tokens,
        domains=counted.domains,
        ranks=[predictor.rank for predictor in predictors.layers] if predictors else [],
        predictor_bytes=predictors.nbytes if predictors else 0,
        layers=layers,
        skew=measure_skew(counted),
        removed=removed,
        estimate=estimate,
        clock=clock,
        notes=notes,
    )


def write(
    directory: ModelDirectory,
    counted: Profile,
    predictors: PredictorSet,
    name: str,
    tell: Callable[[str, int, int], None],
) -> None:
    """Predictors, profile, rows: each file atomically, and every state between them is valid."""
    make_folders(directory, name)
    write_predictors(directory.predictors_path(name), predictors)
    write_counts(directory, counted, name, tell)


def make_folders(directory: ModelFiles, name: str) -> None:
    """The folders that profile and predictors of that name go to."""
    for target in (directory.predictors_path(name), directory.profile_path(name)):
        with explain_os_errors("write a profile", directory.path):
            target.parent.mkdir(exist_ok=True)


def write_counts(
    directory: ModelFiles, counted: Profile, name: str, tell: Callable[[str, int, int], None] | None = None
) -> None:
    """The profile, then the rows of each layer, hottest first."""
    write_profile(directory.profile_path(name), counted)
    for layer in range(counted.layers):
        directory.reorder_layer(layer, counted.hottest_first(layer))
        if tell:
            tell("reordering rows", layer + 1, counted.layers)


def finish_rows(path: Path, counted: Profile, name: str) -> None:
    """Put the rows of those layers in order that a run which was killed left as they were; what it kept goes.

    Raises:
        UserError: the directory is being written, or cannot be written.
    """
    files = ModelFiles.open_files(path)
    wrong = [i for i in range(counted.layers) if not np.array_equal(files.neuron_ids(i), counted.hottest_first(i))]
    if not wrong:
        return
    with only_writer(path, "put rows in order"):
        for layer in wrong:
            files.reorder_layer(layer, counted.hottest_first(layer))
        shutil.rmtree(unfinished(files.profile_path(name).parent, name), ignore_errors=True)
