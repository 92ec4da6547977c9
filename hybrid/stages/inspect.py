"""`hybrid inspect`: what a model directory holds, whether its parts belong together and its bytes are whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoint.names import parameter_count
from hybrid.spec import ModelSpec
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.evaluation_file import read_evaluation, why_stale
from hybrid.store.files import ModelFiles, row_order_digest
from hybrid.store.layout import PADDING
from hybrid.store.manifest import DENSE_FILE
from profiler.artifacts import UserError
from profiler.profile import read_profile
from profiler.thresholds import Loss, loss_label

WEIGHTS = ("embeddings", "attention", "norms", "head", "neurons")
PARTS = {"embed": "embeddings", "positions": "embeddings", "head": "head"}


@dataclass(frozen=True)
class ProfileState:
    """One profile of the directory. binds: it was made for these weights. problem: why it cannot be used, if so."""

    name: str
    tokens: int
    binds: bool
    problem: str | None


@dataclass(frozen=True)
class ThresholdsState:
    """Thresholds of the directory. active: share of the neurons that they leave. warning: what is known of what they
    cost. problem: why they cannot be used, if so.
    """

    name: str
    active: float
    warning: str
    loss: Loss | None
    problem: str | None


@dataclass(frozen=True)
class EvaluationState:
    """One evaluation of the directory: a line for each mode. problem: why it says nothing of the model now, if so."""

    name: str
    headlines: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class InspectReport:
    """A model directory. bits_per_weight: of all weights, scales and padding included. bytes: of its files by part.
    verified: whether every byte was read and found whole.
    """

    path: Path
    spec: ModelSpec
    weight_format: str
    bits_per_weight: float
    stride_bytes: int
    parameters: int
    bytes: dict[str, int]
    source_digest: str
    pack_digest: str
    row_order_digest: str
    in_checkpoint_order: bool
    tokenizer_files: tuple[str, ...]
    profiles: tuple[ProfileState, ...]
    predictors: tuple[str, ...]
    thresholds: tuple[ThresholdsState, ...]
    plans: tuple[str, ...]
    evaluations: tuple[EvaluationState, ...]
    verified: bool

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {**asdict(self), "path": str(self.path), "kind": "inspection"}


def inspect(path: Path, verify: bool = False, progress: Callable[[int, int], None] | None = None) -> InspectReport:
    """Look at a model directory; with `verify` read all that pack wrote and the predictors.

    `progress(done, total)` is told the bytes of what pack wrote.

    Raises:
        UserError: not a model directory, or damaged: names the file.
    """
    files = ModelFiles.open_files(path)
    if verify:
        files.verify(progress)
        _verify_predictors(files)
    spec = files.spec
    parameters = parameter_count(spec)
    sizes = bytes_by_part(files)
    orders = files.row_orders()
    return InspectReport(
        path=path,
        spec=spec,
        weight_format=files.weight_format,
        bits_per_weight=8 * sum(sizes.get(part, 0) for part in WEIGHTS) / parameters,
        stride_bytes=files.stride_bytes,
        parameters=parameters,
        bytes=sizes,
        source_digest=files.source_digest,
        pack_digest=files.pack_digest,
        row_order_digest=row_order_digest(orders),
        in_checkpoint_order=bool((orders[:, :-1] < orders[:, 1:]).all()),
        tokenizer_files=tuple(files.tokenizer_files),
        profiles=tuple(_profile_state(files, name) for name in files.added_names("profiles")),
        predictors=tuple(files.added_names("predictors")),
        thresholds=tuple(_thresholds_state(files, name) for name in files.added_names("thresholds")),
        plans=tuple(files.added_names("plans")),
        evaluations=tuple(_evaluation_state(files, name) for name in files.added_names("evaluations")),
        verified=verify,
    )


def bytes_by_part(files: ModelFiles) -> dict[str, int]:
    """Bytes of embeddings, attention, norms (with all vectors), head, neurons, tokenizer, and headers with padding."""
    sizes: Counter[str] = Counter()
    dense = files.manifest.layouts[DENSE_FILE]
    for entry in dense.entries:
        if not entry.name.startswith(PADDING):
            module = entry.name.split(".")[0]
            sizes[PARTS.get(module, "attention" if len(entry.shape) > 1 else "norms")] += entry.nbytes
    layers = [layout for name, layout in files.manifest.layouts.items() if name != DENSE_FILE]
    sizes["neurons"] = sum(layout.entry("rows").nbytes for layout in layers)
    sizes["tokenizer"] = sum(files.manifest.files[name].size for name in files.tokenizer_files)
    sizes["other"] = sum(record.size for record in files.manifest.files.values()) - sizes.total()
    return dict(sizes)


def _verify_predictors(files: ModelFiles) -> None:
    from profiler.predictor_file import read_predictors  # loads torch, which takes seconds and nothing else here needs

    for name in files.added_names("predictors"):
        path, mend = files.predictors_path(name), f"hybrid profile {files.path} --text FILE"
        for layer, predictor in enumerate(read_predictors(path, mend).layers):
            try:
                predictor.check_finite()
            except UserError as error:
                raise UserError(f"{path} is damaged: {error}, in layer {layer}; make it anew with: {mend}") from error


def _profile_state(files: ModelFiles, name: str) -> ProfileState:
    try:
        profile = read_profile(files.profile_path(name), mend=f"hybrid profile {files.path} --text FILE")
    except UserError as error:
        return ProfileState(name, 0, False, str(error))
    spec = files.spec
    if profile.source_digest != files.source_digest:
        return ProfileState(name, profile.tokens, False, "made for another checkpoint")
    if (profile.layers, profile.neurons) != (spec.n_layers, spec.n_neurons):
        return ProfileState(name, profile.tokens, False, "counts other layers or neurons than the model has")
    return ProfileState(name, profile.tokens, True, None)


def _thresholds_state(files: ModelFiles, name: str) -> ThresholdsState:
    try:
        found = require_thresholds(files, name)
    except UserError as error:
        return ThresholdsState(name, 0.0, "", None, str(error))
    return ThresholdsState(name, found.active, loss_label(found.loss, files.path), found.loss, None)


def _evaluation_state(files: ModelFiles, name: str) -> EvaluationState:
    mend = f"hybrid eval {files.path} --text FILE"
    try:
        evaluation = read_evaluation(files.evaluation_path(name), mend)
    except UserError as error:
        return EvaluationState(name, (), str(error))
    stale = why_stale(evaluation, files)
    if stale is not None:
        return EvaluationState(name, (), f"stale, {stale}; evaluate again with: {mend}")
    return EvaluationState(name, tuple(evaluation.headlines()), None)
